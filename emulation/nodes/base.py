"""What every backend offers, so that nothing above needs to know where a node lives."""

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from emulation.kernel.facts import CounterPlace, NetworkFacts, Readback
from emulation.kernel.process_tag import mark
from emulation.kernel.syscalls import at
from emulation.spec.network import Network, Node

__all__ = ["MASTER_PORT", "Backend"]

MASTER_PORT = 29500
"""The rendezvous port of node 0; torchrun's default, free in a namespace of our own."""


class Backend(ABC):
    """Builds a network's nodes, shapes their links, starts programs on them."""

    interface: str
    """The interface of a node that its peers are behind."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def open(self) -> None:
        """Build the nodes and shape the network's link, or raise and leave nothing."""

    @abstractmethod
    def close(self) -> None:
        """Take down what `open` built; a second time does nothing."""

    @abstractmethod
    def shape(self, network: Network) -> None:
        """Make the links be those of `network`, which has the same nodes, now; counters restart at zero."""

    @abstractmethod
    def change(self, network: Network, at_ns: int | None = None) -> None:
        """Alter links in place, while programs use them; counters go on. `at_ns`, in `follow` only: then, in
        CLOCK_MONOTONIC."""

    @abstractmethod
    def follow(self, highest: Network | None) -> None:
        """Be ready for rates that change quickly, up to those of `highest`; None: no more."""

    @abstractmethod
    def readback(self) -> Readback:
        """What the kernel says is in place, counters too; JSON-able."""

    @abstractmethod
    def check_readback(self, readback: Readback | None = None) -> Readback:
        """The readback, proven to be what `shape` asked for; LinkError otherwise."""

    @abstractmethod
    def check_isolated(self) -> None:
        """Raise LinkError if nodes have another path to each other than their links."""

    @property
    def delays_used(self) -> str | None:
        """What delays and loses packets now: netem, or the delay line; None: nothing, or it is not known yet."""
        return None

    @abstractmethod
    def popen(
        self, node: Node, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **popen_kwargs: Any
    ) -> subprocess.Popen[Any]:
        """Start a program on a node; it is there when this returns. `env` is its whole environment. The process's pid
        is the program's own, except where `starts_programs` is false."""

    @abstractmethod
    def check_alive(self) -> None:
        """Raise LinkError if a process that the links need has ended."""

    @property
    def namespaces(self) -> list[str]:
        """Those in which this process can open sockets of its own, by the names that `at` takes."""
        return []

    def at(self, netns: str | None, task: Callable[..., Any], *arguments: Any) -> Any:
        """What a task gives in one of the network's namespaces, by name."""
        return at(netns, task, *arguments)

    @abstractmethod
    def link_down(self, node: Node) -> None:
        """Cut a node off: its packets go nowhere, and none reaches it."""

    @abstractmethod
    def link_up(self, node: Node) -> None:
        """Undo `link_down`."""

    @abstractmethod
    def partition(self, groups: Sequence[Sequence[Node]]) -> None:
        """Let nodes reach those of their own group only."""

    @abstractmethod
    def heal(self) -> None:
        """Undo `partition`."""

    @abstractmethod
    def signal(self, node: Node, number: int) -> None:
        """Send a signal to every process on a node."""

    def freeze(self, node: Node) -> None:
        """Stop a node's processes."""
        self.signal(node, signal.SIGSTOP)

    def thaw(self, node: Node) -> None:
        """Undo `freeze`."""
        self.signal(node, signal.SIGCONT)

    def kill(self, node: Node) -> None:
        """End a node's processes at once."""
        self.signal(node, signal.SIGKILL)

    @abstractmethod
    def counter(self, node: Node) -> CounterPlace:
        """A JSON-able description which any process of the world gives to `WireCounter`."""

    @abstractmethod
    def commands(self) -> list[str]:
        """Every command that `open` would run; needs no privileges and changes nothing."""

    @abstractmethod
    def describe(self) -> NetworkFacts:
        """What a record of a run should say about the network; JSON-able."""

    starts_programs = True
    """Whether the process that `popen` gives is the program itself, and not one that speaks for it."""

    @property
    def shell(self) -> str:
        """What a user types commands into."""
        return os.environ.get("SHELL", "/bin/sh")

    @property
    def python(self) -> str:
        """The interpreter by which a node runs our own programs."""
        return sys.executable

    @property
    def master_port(self) -> int:
        """Where node 0 listens for the rendezvous."""
        return MASTER_PORT

    def environment(self, node: Node) -> dict[str, str]:
        """What a distributed program on `node` reads to find its peers, as torchrun would set it.

        NCCL would join processes of one host by shared memory or between GPUs, past the links: it is told that each
        node is a host of its own. The mark tells `testbed clean` whose it is.
        """
        return {
            "RANK": str(node.index),
            "WORLD_SIZE": str(len(self.network.nodes)),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": self.network.nodes[0].address,
            "MASTER_PORT": str(self.master_port),
            "GLOO_SOCKET_IFNAME": self.interface,
            "NCCL_SOCKET_IFNAME": self.interface,
            "NCCL_HOSTID": node.name,
            "NCCL_P2P_DISABLE": "1",
            "NCCL_SHM_DISABLE": "1",
            "NCCL_IB_DISABLE": "1",
            "NODE_ADDRS": ",".join(each.address for each in self.network.nodes),
            "OMP_NUM_THREADS": "1",
            **mark(),
        }
