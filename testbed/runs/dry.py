"""`testbed emulate --dry-run`: the resolved configuration and every command, without doing anything."""

import json
from dataclasses import asdict

from emulation.nodes.netns import NetnsBackend
from testbed.runs.settings import Settings

__all__ = ["dry_run"]


def dry_run(settings: Settings) -> str:
    """What `testbed emulate` would do, as text."""
    config = asdict(settings) | {
        "folder": str(settings.folder),
        "mode": settings.mode,
        "nodes": settings.nodes,
    }
    config.pop("network")
    lines = [json.dumps(config, indent=2)]
    if settings.backend == "netns":
        lines += ["", "# the network, with the links under test"]
        lines += NetnsBackend(settings.network).commands()
    for node in settings.network.nodes:
        lines.append(f"on {node.name} ({node.address}): python -m testbed.runs.rank   # RANK={node.index}")
    return "\n".join(lines)
