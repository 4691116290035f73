"""Nodes in network namespaces around a switch namespace with a bridge; to be built inside a world.

    n0: eth0 ──veth── sw0 ┐
    n1: eth0 ──veth── sw1 ┤ br0   (namespace "switch")
    n2: eth0 ──veth── sw2 ┘

Addresses, neighbours and the bridge's forwarding table are static and IPv6 is off, so an idle link carries
no byte.
"""

import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from emulation.commands import Batch, run_all, tool_path, write_sysctl
from emulation.errors import CapabilityError, LinkError
from emulation.isolation import check_isolation
from emulation.netlink import TcSocket
from emulation.network import FRAMING, Link, Network, Node, goodput_bps, gso_bytes
from emulation.nodes.base import Backend
from emulation.shaping import netem, tc
from emulation.syscalls import in_netns, netns_path
from emulation.units import format_rate

__all__ = ["NetnsBackend"]

SWITCH = "switch"
BRIDGE = "br0"
PREFIX_LENGTH = 24
DEFAULT_CONGESTION_CONTROL = "reno"
TCP_SYSCTLS = (
    "net.ipv4.tcp_wmem=4096 4194304 67108864",
    "net.ipv4.tcp_rmem=4096 4194304 67108864",
    "net.ipv4.tcp_slow_start_after_idle=0",
    "net.ipv4.tcp_no_metrics_save=1",
)
"""Room for rate × delay in flight; a step's first bytes go out as fast as the last step's did."""
IPV6_OFF = ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
LAST_HANDLE = 0x7FF0


class NetnsBackend(Backend):
    """A network of namespaces. `with NetnsBackend(network) as backend:` inside `run_in_world`."""

    interface = tc.NODE_DEVICE

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        netem.refuse(network.link)
        self.link = network.link
        self._is_open = False
        self._handle = 0
        self._congestion_control: dict[str, str] = {}

    # -- life

    def open(self) -> None:
        try:
            self._is_open = True
            run_all(self._build_batches())
            self._congestion_control = {node.name: self._choose_congestion_control(node) for node in self.network.nodes}
            self.shape(self.network.link)
            self.check_readback()
            check_isolation(self)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Delete the namespaces; what still runs in one keeps it alive until the world ends."""
        if self._is_open:
            self._is_open = False
            names = [SWITCH, *(node.name for node in self.network.nodes)]
            lines = "".join(f"netns del {name}\n" for name in names)
            subprocess.run(
                [tool_path("ip") or "ip", "-force", "-batch", "-"],
                input=lines,
                text=True,
                capture_output=True,
                check=False,
            )

    # -- building

    def _build_batches(self) -> list[Batch]:
        nodes = self.network.nodes
        names = (SWITCH, *(node.name for node in nodes))
        quiet = tuple(line for line in IPV6_OFF if _has_ipv6())
        batches = [Batch(tool="ip", netns=None, lines=tuple(f"netns add {name}" for name in names))]
        batches += [Batch(tool="sysctl", netns=name, lines=quiet) for name in names if quiet]
        batches.append(Batch(tool="ip", netns=SWITCH, lines=tuple(self._switch_lines())))
        forwarding = tuple(f"fdb replace {_mac(node)} dev {_port(node)} master static" for node in nodes)
        batches.append(Batch(tool="bridge", netns=SWITCH, lines=forwarding))
        for node in nodes:
            batches.append(Batch(tool="ip", netns=node.name, lines=tuple(self._node_lines(node))))
            batches.append(Batch(tool="sysctl", netns=node.name, lines=TCP_SYSCTLS))
        return batches

    def _switch_lines(self) -> list[str]:
        mtu = self.network.mtu
        lines = [
            f"link add {BRIDGE} mtu {mtu} type bridge stp_state 0 mcast_snooping 0",
            f"link set {BRIDGE} up",
        ]
        for node in self.network.nodes:
            port = _port(node)
            lines += [
                f"link add {port} mtu {mtu} type veth peer name eth0 address {_mac(node)} mtu {mtu} netns {node.name}",
                f"link set {port} master {BRIDGE} up",
                f"link set {port} type bridge_slave learning off flood off mcast_flood off",
            ]
        return lines

    def _node_lines(self, node: Node) -> list[str]:
        lines = ["link set lo up", "link set eth0 up", f"addr add {node.address}/{PREFIX_LENGTH} dev eth0"]
        for peer in self.network.peers(node):
            lines.append(f"neigh replace {peer.address} lladdr {_mac(peer)} dev eth0 nud permanent")
        return lines

    def _choose_congestion_control(self, node: Node) -> str:
        """Set it by sysctl, or, where that is not allowed, on the route; the name and how it was set."""
        wanted = self.network.congestion_control or DEFAULT_CONGESTION_CONTROL
        try:
            with in_netns(node.name):
                write_sysctl("net.ipv4.tcp_congestion_control", wanted)
            return wanted
        except CapabilityError:
            subnet = node.address.rpartition(".")[0] + f".0/{PREFIX_LENGTH}"
            line = f"route replace {subnet} dev eth0 proto kernel scope link src {node.address} congctl {wanted}"
            Batch(tool="ip", netns=node.name, lines=(line,)).run()
            return f"{wanted} (by route)"

    # -- shaping

    def shape(self, link: Link) -> None:
        """Make every link be `link`, now; counters restart at zero with the new shapers.

        Each shaper is grafted in one step; with accounting "pair" its classes follow within microseconds,
        during which packets pass unshaped: shape between steps, not during one.
        """
        netem.refuse(link)
        self._handle = self._handle % LAST_HANDLE + 1
        self.link = link
        run_all(self._shape_batches(link, self._handle))

    def _shape_batches(self, link: Link, handle: int) -> list[Batch]:
        batches, switch_lines = [], []
        for node in self.network.nodes:
            egress, ingress = tc.node_shapers(self.network, node, link)
            segments = f"link set dev eth0 gso_max_size {gso_bytes(link.rate_bps, self.network.mtu)}"
            batches.append(Batch(tool="ip", netns=node.name, lines=(segments,)))
            batches.append(Batch(tool="tc", netns=node.name, lines=tuple(egress.lines("eth0", handle))))
            switch_lines += ingress.lines(_port(node), handle)
        return [*batches, Batch(tool="tc", netns=SWITCH, lines=tuple(switch_lines))]

    def readback(self) -> dict[str, Any]:
        """What the kernel has, per node: `{"n0": {"tx": {...}, "rx": {...}}, ...}`, with counters."""
        found: dict[str, Any] = {}
        with in_netns(SWITCH):
            ports = _read_devices([_port(node) for node in self.network.nodes])
        for node in self.network.nodes:
            with in_netns(node.name):
                found[node.name] = {"tx": _read_devices(["eth0"])["eth0"], "rx": ports[_port(node)]}
        return found

    def check_readback(self, readback: dict[str, Any] | None = None) -> dict[str, Any]:
        found = self.readback() if readback is None else readback
        problems: list[str] = []
        for node in self.network.nodes:
            shapers = tc.node_shapers(self.network, node, self.link)
            for end, shaper in zip(("tx", "rx"), shapers, strict=True):
                problems += tc.differences(shaper.expected(), found[node.name][end], f"{node.name} {end}")
        if problems:
            asked = format_rate(self.link.rate_bps) if self.link.rate_bps else "an unshaped link"
            raise LinkError(
                f"{asked} was asked for ({self.network.accounting}), but " + "; ".join(problems[:4]) + ". "
                "Something else changed the shapers, or this kernel cannot hold them: "
                "try again, then another rate."
            )
        return found

    # -- using

    def popen(
        self, node: Node, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **popen_kwargs: Any
    ) -> subprocess.Popen[Any]:
        nsenter = tool_path("nsenter") or "nsenter"
        command = [nsenter, f"--net={netns_path(node.name)}", "--", *argv]
        return subprocess.Popen(command, env=env, **popen_kwargs)

    def counter(self, node: Node) -> dict[str, Any]:
        return {
            "kind": "netns",
            "node": node.name,
            "tx": {"netns": node.name, "device": "eth0"},
            "rx": {"netns": SWITCH, "device": _port(node)},
        }

    def commands(self) -> list[str]:
        wanted = self.network.congestion_control or DEFAULT_CONGESTION_CONTROL
        batches = self._build_batches()
        setting = (f"net.ipv4.tcp_congestion_control={wanted}",)
        batches += [Batch(tool="sysctl", netns=node.name, lines=setting) for node in self.network.nodes]
        return [line for batch in [*batches, *self._shape_batches(self.link, 1)] for line in batch.shown()]

    def describe(self) -> dict[str, Any]:
        rate = self.link.rate_bps
        return {
            "backend": "netns",
            "shaped": rate is not None,
            "accounting": self.network.accounting,
            "framing": FRAMING,
            "rate_bps": rate,
            "goodput_expected_bps": goodput_bps(rate, self.network.mtu) if rate else None,
            "mtu": self.network.mtu,
            "congestion_control": sorted(set(self._congestion_control.values())),
            "sysctls": list(TCP_SYSCTLS),
            "nodes": [{"name": node.name, "address": node.address} for node in self.network.nodes],
        }


def _port(node: Node) -> str:
    """The switch's end of a node's cable."""
    return f"sw{node.index}"


def _mac(node: Node) -> str:
    """A locally administered address, fixed by the node's number."""
    return f"02:00:0a:4d:00:{node.index + 1:02x}"


def _has_ipv6() -> bool:
    """Whether this kernel has IPv6 to turn off (an interface's settings exist then)."""
    try:
        with open("/proc/net/if_inet6", encoding="ascii"):
            return True
    except OSError:
        return False


def _read_devices(devices: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The root qdisc of each device of the current namespace, with its classes and their leaves."""
    sock = TcSocket()
    try:
        qdiscs = sock.qdiscs()
        return {device: _read_device(sock, qdiscs, socket.if_nametoindex(device)) for device in devices}
    finally:
        sock.close()


def _read_device(sock: TcSocket, qdiscs: list[dict[str, Any]], ifindex: int) -> dict[str, Any]:
    mine = [each for each in qdiscs if each["ifindex"] == ifindex]
    root = dict(sock.root_qdisc(ifindex))
    leaves = {each["handle"]: each for each in mine}
    classes = {}
    for each in sock.classes(ifindex) if root["kind"] == "htb" else ():
        leaf = leaves.get(each["info"], {})
        classes[f"{each['handle'] & 0xFFFF:x}"] = each | {"limit_packets": leaf.get("limit_packets")}
    return root | {"classes": classes}
