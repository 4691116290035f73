"""Nodes in a world by name and number: hosts files, hardware addresses, cables and routes, processes."""

import os
from contextlib import suppress
from pathlib import Path

from emulation.errors import CapabilityError
from emulation.kernel.syscalls import MS_BIND, mount, netns_path
from emulation.nodes.readback import port_of
from emulation.spec.network import Network, Node

__all__ = ["PREFIX_LENGTH", "name_nodes", "node_lines", "processes_in", "switch_lines"]

PREFIX_LENGTH = 24

HOSTS = "/run/hosts"
"""A world's own, over /etc/hosts; /run is the world's, too."""


def name_nodes(network: Network) -> None:
    """Make every node's name resolve on every node: the world has a hosts file of its own (hosts(5))."""
    names = [f"{node.address} {node.name}\n" for node in network.nodes]
    try:
        Path(HOSTS).write_text("".join(["127.0.0.1 localhost\n", *names]))
        if not os.path.samefile(HOSTS, "/etc/hosts"):
            mount(HOSTS, "/etc/hosts", None, MS_BIND)
    except OSError as error:
        raise CapabilityError(f"nodes cannot have names of their own here: /etc/hosts: {error.strerror}") from None


def switch_lines(network: Network) -> list[str]:
    """What to give to `ip -batch` in the switch: a cable, a route and a neighbour for each node."""
    lines = []
    for node in network.nodes:
        port, mtu = port_of(node), network.mtu_of(node)
        lines += [
            f"link add {port} address {_mac(node, 1)} mtu {mtu} type veth "
            f"peer name eth0 address {_mac(node)} mtu {mtu} netns {node.name}",
            f"link set {port} up",
            f"route add {node.address}/32 dev {port}",
            f"neigh replace {node.address} lladdr {_mac(node)} dev {port} nud permanent",
        ]
    return lines


def node_lines(network: Network, node: Node) -> list[str]:
    """The same in a node, where every peer is behind the switch's port."""
    lines = ["link set lo up", "link set eth0 up", f"addr add {node.address}/{PREFIX_LENGTH} dev eth0"]
    for peer in network.peers(node):
        lines.append(f"neigh replace {peer.address} lladdr {_mac(node, 1)} dev eth0 nud permanent")
    return lines


def processes_in(netns: str) -> list[int]:
    """Every process in a namespace but this one."""
    inside, found = os.stat(netns_path(netns)).st_ino, []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino == inside:
                    found.append(int(entry))
    return found


def _mac(node: Node, end: int = 0) -> str:
    """A locally administered address, fixed by the node's number; `end` 1: of the switch's port."""
    return f"02:00:0a:4d:{end:02x}:{node.index + 1:02x}"
