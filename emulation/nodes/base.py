"""What every backend offers, so that nothing above needs to know where a node lives."""

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

from emulation.network import Link, Network, Node

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
    def shape(self, link: Link) -> None:
        """Make every link be `link`, now, on the living network."""

    @abstractmethod
    def readback(self) -> dict[str, Any]:
        """What the kernel says is in place, per node; JSON-able."""

    @abstractmethod
    def check_readback(self, readback: dict[str, Any] | None = None) -> dict[str, Any]:
        """The readback, proven to be what `shape` asked for; LinkError otherwise."""

    @abstractmethod
    def popen(
        self, node: Node, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **popen_kwargs: Any
    ) -> subprocess.Popen[Any]:
        """Start a program on a node; the process's pid is the program's own. `env` is its whole
        environment."""

    @abstractmethod
    def counter(self, node: Node) -> dict[str, Any]:
        """A JSON-able description which any process of the world gives to `WireCounter`."""

    @abstractmethod
    def commands(self) -> list[str]:
        """Every command that `open` would run; needs no privileges and changes nothing."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a record of a run should say about the network; JSON-able."""

    @property
    def master_port(self) -> int:
        """Where node 0 listens for the rendezvous."""
        return MASTER_PORT

    def environment(self, node: Node) -> dict[str, str]:
        """What a distributed program on `node` reads to find its peers, as torchrun would set it."""
        return {
            "RANK": str(node.index),
            "WORLD_SIZE": str(len(self.network.nodes)),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": self.network.nodes[0].address,
            "MASTER_PORT": str(self.master_port),
            "GLOO_SOCKET_IFNAME": self.interface,
            "NCCL_SOCKET_IFNAME": self.interface,
            "NODE_ADDRS": ",".join(each.address for each in self.network.nodes),
            "OMP_NUM_THREADS": "1",
        }
