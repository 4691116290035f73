"""Proof that nodes have no path to each other but the shaped one."""

from emulation.errors import LinkError
from emulation.kernel.commands import At, ip_json
from emulation.kernel.facts import ToolRow
from emulation.spec.network import Network

__all__ = ["check_isolation"]

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


def check_isolation(network: Network, at: At) -> None:
    """Raise LinkError unless each node has `lo`, `eth0` and the subnet's route only, and the switch only
    its ports. `at`: calls in a namespace (`emulation.kernel.commands.At`)."""
    problems: list[str] = []

    def asked(netns: str, *words: str) -> list[ToolRow]:
        return at(netns, ip_json, netns, *words)

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


def _extra_links(netns: str, links: list[ToolRow], allowed: set[str]) -> list[str]:
    problems = []
    for link in links:
        name = link["ifname"]
        idle = name in _FALLBACK_DEVICES and "UP" not in link["flags"]
        if name not in allowed and not idle:
            problems.append(f"{netns} has the extra interface {name}")
    return problems
