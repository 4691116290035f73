"""The network that a user asks for, as flags: shared by every command that builds one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from emulation.network import Framing, Link, Network, star
from emulation.settings import SETTINGS, alter, parse_settings
from testbed.errors import UsageError
from testbed.networks import network_from

__all__ = ["Asked", "network_for"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Texts as given: not parsed yet."""

    bw: str | None = None
    """Rate of a link: 300mbit, 1gbit, 2.5gbit …"""
    down: str | None = None
    """Rate of what a node receives, where it differs (with --accounting nic)."""
    delay: str | None = None
    """One-way delay of a path: 20ms; a round trip is twice that."""
    jitter: str | None = None
    """Spread of the delay: 2ms."""
    distribution: Literal["normal", "uniform", "pareto"] | None = None
    """Of the jitter (default normal)."""
    loss: str | None = None
    """Packets lost: 1%."""
    loss_burst: float | None = None
    """Mean number of packets lost in a row (Gilbert-Elliott); default: each on its own."""
    reorder: str | None = None
    """Packets that are not delayed and so overtake others: 1%."""
    queue: str | None = None
    """Depth of a link's queue: 500kB or 40ms (default: 40 ms or a round trip)."""
    mtu: int | None = None
    framing: Framing | None = None
    """What a rate counts: layer2 (95.6 % of it is goodput; default) or ethernet (94.15 %)."""
    network: str | None = None
    """A network by name (experiments/networks) or a .toml file; the flags above change all its links."""
    nodes: int | None = None
    """Nodes to build (default 4, or the network's)."""
    accounting: Literal["pair", "nic"] | None = None
    """Whose the rate is: each pair's of nodes (default), or a node's whole access link."""
    share: bool = False
    """Run although another run uses this machine."""

    @property
    def network_name(self) -> str | None:
        """For the name of a run."""
        return Path(self.network).stem if self.network else None


def network_for(asked: Asked, *, default_nodes: int = 4) -> Network:
    """The network that texts describe; raises `UsageError`."""
    if asked.nodes is not None and asked.nodes < 2:
        raise UsageError(f"{asked.nodes} nodes were asked for; a network has at least 2")
    if asked.network is not None:
        network = network_from(asked.network, asked.nodes)
        if asked.accounting not in (None, network.accounting):
            raise UsageError(f"the network {asked.network} counts per {network.accounting}; leave --accounting out")
    else:
        network = star(asked.nodes or default_nodes, Link(), asked.accounting or "pair")
    texts = {name: getattr(asked, name) for name in SETTINGS if getattr(asked, name) is not None}
    changes = parse_settings(texts, "the command")
    if "rate_down_bps" in changes and network.accounting == "pair":
        raise UsageError("a rate down belongs to a node's access link: add --accounting nic")
    if "rate_bps" in changes:
        changes = {"rate_down_bps": None, **changes}
    if changes:
        network = network.change(lambda link: alter(link, changes))
    if asked.mtu is not None:
        network = replace(network, mtu=asked.mtu, node_mtus=())
    if asked.framing is not None:
        network = replace(network, framing=asked.framing)
    return network
