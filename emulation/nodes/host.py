"""The null twin: nodes that are plain processes on this host's loopback, unshaped and uncounted."""

import random
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from emulation.errors import EmulationError, UsageError
from emulation.kernel.facts import CounterPlace, NetworkFacts, NodeReadback, Readback
from emulation.nodes.base import Backend
from emulation.spec.network import Link, Network, Node

__all__ = ["HostBackend", "free_port"]

_PORTS = range(20000, 30000)


class HostBackend(Backend):
    """Nodes at 127.0.0.1, 127.0.0.2 … of the namespace in which this process is.

    No link is shaped and nothing is counted: asking for a rate is an error, so that nothing trains unshaped
    by accident. Programs die with the thread that started them where setpriv(1) is present.
    """

    interface = "lo"

    def __init__(self, network: Network) -> None:
        nodes = tuple(replace(node, address=f"127.0.0.{node.index + 1}") for node in network.nodes)
        super().__init__(replace(network, nodes=nodes))
        self._port: int | None = None
        self.shape(network)

    def open(self) -> None:
        self._port = free_port([node.address for node in self.network.nodes])

    def close(self) -> None:
        self._port = None

    @property
    def master_port(self) -> int:
        return self._port or super().master_port

    def shape(self, network: Network) -> None:
        if network.links != (Link(),):
            raise UsageError(
                "host nodes have no links to shape; leave the rate, delay and loss out, or use netns nodes."
            )

    def change(self, network: Network, at_ns: int | None = None) -> None:  # noqa: ARG002
        self.shape(network)

    def follow(self, highest: Network | None) -> None:  # noqa: ARG002
        raise UsageError("host nodes have no links that could change; give a backend with links, for example netns.")

    def check_alive(self) -> None:
        pass

    def link_down(self, node: Node) -> None:  # noqa: ARG002
        raise UsageError("host nodes have no links that could fail; use netns nodes.")

    def link_up(self, node: Node) -> None:
        self.link_down(node)

    def partition(self, groups: Sequence[Sequence[Node]]) -> None:
        self.link_down(groups[0][0])

    def heal(self) -> None:
        pass

    def signal(self, node: Node, number: int) -> None:  # noqa: ARG002
        raise UsageError("host nodes are processes among others; use netns nodes to stop or end those of one node.")

    def readback(self) -> Readback:
        nodes: dict[str, NodeReadback] = {node.name: {"unshaped": True} for node in self.network.nodes}
        return {"nodes": nodes, "cuts": [], "delay_line": []}

    def check_isolated(self) -> None:
        pass

    def check_readback(self, readback: Readback | None = None) -> Readback:
        return self.readback() if readback is None else readback

    def popen(
        self, node: Node, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **popen_kwargs: Any
    ) -> subprocess.Popen[Any]:
        assert 0 <= node.index < len(self.network.nodes)
        leash = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        return subprocess.Popen([*leash, *argv], env=env, **popen_kwargs)

    def counter(self, node: Node) -> CounterPlace:
        return {"kind": "host", "node": node.name}

    def commands(self) -> list[str]:
        return []

    def describe(self) -> NetworkFacts:
        return {
            "backend": "host",
            "shaped": False,
            "note": "processes on this host's loopback: no link is shaped and no wire bytes are counted",
            "nodes": [{"name": node.name, "address": node.address} for node in self.network.nodes],
        }


def free_port(addresses: Sequence[str]) -> int:
    """A port free at every one of `addresses`, below the ports that the kernel gives to outgoing connections."""
    for port in random.sample(_PORTS, 100):
        with ExitStack() as sockets, suppress(OSError):
            for address in addresses:
                sockets.enter_context(socket.create_server((address, port)))
            return port
    raise EmulationError(f"no free port between {_PORTS.start} and {_PORTS.stop - 1} on loopback.")
