"""What the kernel has of a network of namespaces, read back; and what of it this kernel can have."""

import json
import os
import socket
import subprocess
from collections.abc import Sequence

from emulation.errors import EmulationError
from emulation.kernel.commands import ip_json, tool_path
from emulation.kernel.facts import ShaperFacts, ToolRow
from emulation.kernel.netlink import ROOT, TcSocket
from emulation.spec.network import Node

__all__ = [
    "CUT_PRIORITY",
    "SWITCH",
    "cut_differences",
    "has_ipv6",
    "port_of",
    "read_cuts",
    "read_devices",
    "steering",
    "try_netem",
]

SWITCH = "switch"
CUT_PRIORITY = 100
_ORDINARY_RULES: list[ToolRow] = [
    {"priority": priority, "src": "all", "table": table}
    for priority, table in ((0, "local"), (32766, "main"), (32767, "default"))
]


def port_of(node: Node) -> str:
    """The switch's end of a node's cable."""
    return f"sw{node.index}"


def steering() -> tuple[str, ...]:
    """Let each flow's packets be received on one core (receive packet steering), so that none overtakes another.

    Without it a flow whose sender moves between cores is reordered now and then, and TCP resends for nothing. Linux 6.3
    and later have the setting per namespace.
    """
    if not os.path.exists("/proc/sys/net/core/rps_default_mask"):
        return ()
    mask = (1 << (os.cpu_count() or 1)) - 1
    words = [f"{mask >> shift & 0xFFFFFFFF:08x}" for shift in range(0, mask.bit_length(), 32)]
    return ("net.core.rps_default_mask=" + ",".join(reversed(words)),)


def has_ipv6() -> bool:
    """Whether this kernel has IPv6 to turn off (an interface's settings exist then)."""
    try:
        with open("/proc/net/if_inet6", encoding="ascii"):
            return True
    except OSError:
        return False


def try_netem() -> bool:
    """Whether this kernel has netem: put one on the present loopback for a moment."""
    line = f"{tool_path('tc') or 'tc'} qdisc {{}} dev lo root handle 1: netem delay 1ms"
    done = subprocess.run(line.format("add").split(), capture_output=True, check=False)
    if done.returncode == 0:
        subprocess.run([tool_path("tc") or "tc", "qdisc", "del", "dev", "lo", "root"], capture_output=True, check=False)
    return done.returncode == 0


def read_cuts() -> list[ToolRow]:
    """The switch's rules beside every namespace's own."""
    try:
        return [rule for rule in ip_json(SWITCH, "rule", "show") if rule not in _ORDINARY_RULES]
    except EmulationError:
        return []  # a kernel without policy routing: it has refused every fault


def cut_differences(cut: set[tuple[Node, Node]], found: list[ToolRow]) -> list[str]:
    """Pairs that should be cut and are not, and rules of the switch that no fault asked for."""
    asked: list[ToolRow] = [
        {"priority": CUT_PRIORITY, "src": "all", "dst": b.address, "iif": port_of(a), "action": "blackhole"}
        for a, b in sorted(cut, key=str)
    ]
    problems = [f"the fault that cuts {each['iif']} from {each['dst']} is gone" for each in asked if each not in found]
    extra = [each for each in found if each not in asked]
    return problems + [f"the switch's rule {json.dumps(each)} was not asked for" for each in extra]


def read_devices(devices: Sequence[str]) -> dict[str, ShaperFacts]:
    """The root qdisc of each device of the current namespace, with its classes and their leaves."""
    sock = TcSocket()
    try:
        qdiscs = sock.qdiscs()
        return {device: _read_device(sock, qdiscs, socket.if_nametoindex(device)) for device in devices}
    finally:
        sock.close()


def _read_device(sock: TcSocket, qdiscs: list[ShaperFacts], ifindex: int) -> ShaperFacts:
    """With what else is on the device as "others"."""
    root: ShaperFacts = {**sock.root_qdisc(ifindex), **sock.interface_limits(ifindex)}
    behind = {each["parent"]: each for each in qdiscs if each["ifindex"] == ifindex and each["parent"] != ROOT}
    if root["kind"] == "tbf" and (leaf := behind.pop(root["handle"] | 1, None)):
        if leaf["kind"] == "netem":
            root["leaf"] = leaf
        elif leaf.get("limit_bytes") != root["limit_bytes"]:
            behind[leaf["parent"]] = leaf
    classes: dict[str, ShaperFacts] = {}
    for each in sock.classes(ifindex) if root["kind"] == "htb" else ():
        leaf = behind.pop(each["handle"], None)
        if leaf is not None and leaf["kind"] == "netem":
            each["leaf"] = leaf
        elif leaf is not None and "limit_bytes" in leaf:
            each["limit_bytes"] = leaf["limit_bytes"]
        classes[f"{each['handle'] & 0xFFFF:x}"] = each
    if root["kind"] == "htb":
        root["filters"] = sorted(sock.filters(ifindex, root["handle"]))
    return {**root, "classes": classes, "others": sorted(each["kind"] for each in behind.values())}
