"""Proof that nodes have no path to each other but the shaped one."""

import json
import subprocess
from typing import TYPE_CHECKING, Any

from emulation.commands import tool_path
from emulation.errors import EmulationError, LinkError
from emulation.syscalls import in_netns

if TYPE_CHECKING:
    from emulation.nodes.netns import NetnsBackend

__all__ = ["check_isolation", "ip_json"]

_FALLBACK_DEVICES = (
    "tunl0",
    "gre0",
    "gretap0",
    "erspan0",
    "ip_vti0",
    "ip6_vti0",
    "sit0",
    "ip6tnl0",
    "ip6gre0",
)
"""What some kernels put into every new namespace (net.core.fb_tunnels_only_for_init_net=0); harmless while
down."""


def check_isolation(backend: "NetnsBackend") -> None:
    """Raise LinkError unless each node has `lo`, `eth0` and the subnet's route only, and the switch only
    its ports."""
    network, problems = backend.network, []

    def asked(netns: str, *words: str) -> list[dict[str, Any]]:
        return backend.at(netns, ip_json, netns, *words)

    ports = {f"sw{node.index}" for node in network.nodes}
    routes = {(node.address, f"sw{node.index}") for node in network.nodes}
    problems += _extra_links("switch", asked("switch", "link", "show"), {"lo", *ports})
    problems += [
        f"the switch has the extra route {route.get('dst')} by {route.get('dev')}"
        for route in asked("switch", "route", "show")
        if (route.get("dst"), route.get("dev")) not in routes
    ]
    for node in network.nodes:
        problems += _extra_links(node.name, asked(node.name, "link", "show"), {"lo", "eth0"})
        subnet = node.address.rpartition(".")[0] + ".0/24"
        for route in asked(node.name, "route", "show"):
            if route.get("dst") != subnet or route.get("dev") != "eth0":
                problems.append(f"{node.name} has the extra route {route.get('dst')} by {route.get('dev')}")
    if problems:
        raise LinkError(
            "nodes must reach each other through their shaped links only, but " + "; ".join(problems) + ". "
            "Remove what was added, or build the network anew."
        )


def _extra_links(netns: str, links: list[dict[str, Any]], allowed: set[str]) -> list[str]:
    problems = []
    for link in links:
        name = link["ifname"]
        idle = name in _FALLBACK_DEVICES and "UP" not in link["flags"]
        if name not in allowed and not idle:
            problems.append(f"{netns} has the extra interface {name}")
    return problems


def ip_json(netns: str, *words: str) -> list[dict[str, Any]]:
    """What ip(8) prints as JSON inside a namespace."""
    with in_netns(netns):
        done = subprocess.run([tool_path("ip") or "ip", "-j", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EmulationError(f"'ip -n {netns} -j {' '.join(words)}' failed: {done.stderr.strip()}")
    return json.loads(done.stdout or "[]")
