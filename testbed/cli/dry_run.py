"""`testbed emulate --dry-run`: the resolved configuration and every command, without doing anything."""

import json
from dataclasses import asdict, replace

from pydantic import JsonValue

from emulation.nodes.base import Backend
from emulation.spec.network import Network
from testbed.driver.backends import make_nodes
from testbed.settings.emulate import Settings

__all__ = ["dry_run", "network_commands"]

_EVENTS_SHOWN = 20


def dry_run(settings: Settings) -> str:
    """What `testbed emulate` would do, as text."""
    config = asdict(replace(settings, schedule=None)) | {
        "folder": str(settings.folder),
        "mode": settings.mode,
        "nodes": settings.nodes,
        "network": _network(settings.network),
        "link": asdict(settings.network.link),
        "schedule": settings.schedule and settings.schedule.describe()[:_EVENTS_SHOWN],
    }
    lines = [json.dumps(config, indent=2)]
    if settings.schedule is not None and len(settings.schedule) > _EVENTS_SHOWN:
        lines.append(f"# … and {len(settings.schedule) - _EVENTS_SHOWN} more events")
    if settings.backend != "host":
        nodes = make_nodes(settings.network, settings.backend, run=settings.folder.name, image=settings.image)
        lines += ["", "# the network, with the links under test", *network_commands(nodes)]
    for node in settings.network.nodes:
        lines.append(f"on {node.name} ({node.address}): python -m testbed.driver.rank   # RANK={node.index}")
    return "\n".join(lines)


def network_commands(nodes: Backend) -> list[str]:
    """What builds and shapes the nodes' network."""
    lines = nodes.commands()
    if nodes.network.impaired:
        lines.append("# iptables: the delay line's queues; where the kernel has netem, tc puts that into the shapers")
    return lines


def _network(network: Network) -> dict[str, JsonValue]:
    """All but the link that most have, which stands for itself."""
    own = {network.nodes[index].name: link for index, link in network.node_links}
    own |= {f"{network.nodes[a].name} -> {network.nodes[b].name}": link for a, b, link in network.pair_links}
    return {
        "accounting": network.accounting,
        "framing": network.framing,
        "mtu": network.mtu,
        "links_that_differ": {
            name: {key: value for key, value in asdict(link).items() if value != getattr(network.link, key)}
            for name, link in own.items()
            if link != network.link
        },
    }
