"""The network that a user asks for, as flags: shared by every command that builds one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from emulation.errors import UsageError as NetworkUsageError
from emulation.spec.network import Framing, Link, LinkSettings, Network, star
from emulation.spec.settings import SETTINGS, alter, parse_settings
from emulation.spec.units import format_delay, format_percent, format_rate
from testbed.commandline import flag
from testbed.errors import UsageError
from testbed.settings.networks import network_spec

__all__ = ["Asked", "AskedLink", "BackendName", "link_of", "network_for", "words_of"]

BackendName = Literal["netns", "docker", "host"]

_DEFAULT_NODES = 4


@dataclass(frozen=True, kw_only=True)
class AskedLink:
    """A link, as texts: not parsed yet."""

    bw: Annotated[str | None, flag("RATE")] = None
    """Rate of a link: 300mbit, 1gbit, 2.5gbit …"""
    down: Annotated[str | None, flag("RATE")] = None
    """Rate of what a node receives, where it differs (access links: accounting nic)."""
    delay: Annotated[str | None, flag("TIME")] = None
    """One-way delay of a path: 20ms; between two such nodes a round trip is twice that."""
    jitter: Annotated[str | None, flag("TIME")] = None
    """Spread of the delay: 2ms."""
    distribution: Annotated[Literal["normal", "uniform", "pareto"] | None, flag("normal|uniform|pareto")] = None
    """Law of the jitter; normal unless given."""
    loss: Annotated[str | None, flag("PERCENT")] = None
    """Packets lost: 1%."""
    loss_burst: Annotated[float | None, flag("PACKETS")] = None
    """Mean number of packets lost in a row: 3; each is lost on its own unless given."""
    reorder: Annotated[str | None, flag("PERCENT")] = None
    """Packets that are not delayed and so overtake others: 1%."""
    queue: Annotated[str | None, flag("SIZE|TIME")] = None
    """Depth of a link's queue: 500kB or 40ms; the longer of 40 ms and a round trip unless given."""
    framing: Annotated[Framing | None, flag("layer2|ethernet")] = None
    """What a rate counts: layer2 (95.6 % of it is goodput) unless given, or ethernet, a bare wire (94.15 %)."""

    def changes(self) -> LinkSettings:
        """What the flags change of a link; an error begins with the flag."""
        changes: LinkSettings = {}
        for name in SETTINGS:
            if (text := getattr(self, name)) is not None:
                try:
                    changes |= parse_settings({name: text}, "")
                except NetworkUsageError as error:
                    said = str(error).removeprefix(f": {name}: ")
                    raise UsageError(f"--{name.replace('_', '-')}: {said}") from None
        return changes


@dataclass(frozen=True, kw_only=True)
class Asked(AskedLink):
    """Links, and the nodes around them; one of --bw and --network is needed."""

    mtu: Annotated[int | None, flag("BYTES")] = None
    """Largest packet: 576 to 9000; 1500 unless given."""
    network: Annotated[str | None, flag("NAME|FILE")] = None
    """A network by name (cable, wan10 …) or a .toml file; the flags above change all its links."""
    nodes: Annotated[int | None, flag("N")] = None
    """Nodes to build; 4, or the network's own number, unless given."""
    accounting: Annotated[Literal["pair", "nic"] | None, flag("pair|nic")] = None
    """Whose the rate is: each pair's of nodes (pair), or a node's whole access link (nic); pair unless given."""
    backend: Annotated[BackendName, flag("netns|docker")] = "netns"
    """Network namespaces, or containers of this machine's engine (docs/docker.md)."""
    image: Annotated[str | None, flag("IMAGE")] = None
    """Of the containers; slowlink-testbed ('make image') unless given."""
    share: bool = False
    """Run although another run uses this machine."""

    @property
    def network_name(self) -> str | None:
        """For the name of a run."""
        return Path(self.network).stem if self.network else None


def network_for(asked: Asked, *, nic_nodes: int | None = None) -> Network:
    """The network that texts describe; raises `UsageError`.

    `nic_nodes`: how many nodes there are with accounting nic, unless asked otherwise.
    """
    if asked.nodes is not None and asked.nodes < 2:
        raise UsageError(f"{asked.nodes} nodes were asked for; a network has at least 2")
    if asked.image is not None and asked.backend != "docker":
        raise UsageError(f"an image ({asked.image}) is what containers are made of: add --backend docker")
    if asked.network is not None:
        spec = network_spec(asked.network)
        if asked.accounting not in (None, spec.accounting):
            raise UsageError(f"the network {asked.network} counts per {spec.accounting}; leave --accounting out")
        network = spec.network(asked.nodes or (nic_nodes if spec.accounting == "nic" else None))
    else:
        accounting = asked.accounting or "pair"
        count = asked.nodes or (nic_nodes if accounting == "nic" else None) or _DEFAULT_NODES
        network = star(count, Link(), accounting)
    changes = asked.changes()
    if "rate_down_bps" in changes and network.accounting == "pair":
        raise UsageError("a rate down belongs to a node's access link: add --accounting nic")
    if "rate_bps" in changes:
        changes = LinkSettings({"rate_down_bps": None, **changes})
    if changes:
        network = network.change(lambda link: alter(link, changes))
    if asked.mtu is not None:
        network = replace(network, mtu=asked.mtu, node_mtus=())
    if asked.framing is not None:
        network = replace(network, framing=asked.framing)
    return network


def link_of(changes: LinkSettings) -> Link:
    """The link that flags ask for."""
    if not changes:
        raise UsageError("no link was asked for: give a rate, --bw 300mbit, a delay, --delay 20ms, or --undo")
    try:
        return alter(Link(), changes)
    except NetworkUsageError as error:
        raise UsageError(f"{error}".rstrip(".")) from None


def words_of(link: Link) -> str:
    """For people: "300mbit each way, 20ms late, 1% lost"."""
    rate = "as fast as it was"
    if link.rate_bps is not None:
        rate = f"{format_rate(link.rate_bps)} each way"
        if link.down_bps is not None and link.down_bps != link.rate_bps:
            rate = f"{format_rate(link.rate_bps)} up, {format_rate(link.down_bps)} down"
    parts = [rate, f"{format_delay(link.delay_us)} late" if link.delay_us else ""]
    parts.append(f"{format_percent(link.loss)} lost" if link.loss else "")
    return ", ".join(part for part in parts if part)
