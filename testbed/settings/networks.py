"""Networks as data: `experiments/networks/*.toml`, or a file of one's own. Imports no torch. docs/networks.md."""

import csv
import difflib
import re
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from emulation.errors import UsageError as EmulationUsageError
from emulation.spec.events import Change
from emulation.spec.network import Link, LinkSettings, Network, star
from emulation.spec.settings import alter, parse_settings
from emulation.spec.traces import read_text
from testbed.config import STRICT, at_least, load_toml
from testbed.config.tree import EXPERIMENTS
from testbed.errors import UsageError

__all__ = ["MatrixSpec", "NetworkSpec", "network_from", "network_spec"]

_MILLISECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{0,9})?")


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """A link's settings, as texts with units; what is left out stays as it is."""

    __pydantic_config__ = STRICT

    rate: str | None = None
    delay: str | None = None
    """One way."""
    jitter: str | None = None
    distribution: str | None = None
    """normal, uniform or pareto."""
    loss: str | None = None
    loss_burst: float | None = None
    """Mean number of packets lost in a row."""
    reorder: str | None = None
    queue: str | None = None
    """A size ("500kB"), or a time at the rate ("40ms")."""

    def settings(self, where: str) -> LinkSettings:
        """As fields of `emulation.spec.network.Link`; raises the emulation's `UsageError`."""
        names = [each.name for each in fields(LinkSpec)]
        texts = {name: getattr(self, name, None) for name in names}
        return parse_settings({name: text for name, text in texts.items() if text is not None}, where, "rate")


@dataclass(frozen=True, kw_only=True)
class LinkSpec(_Settings):
    """A node's link; with accounting "pair" each pair's."""

    down: str | None = None
    """Rate of what a node receives, where it differs; accounting "nic" only."""


@dataclass(frozen=True, kw_only=True)
class NodeSpec(LinkSpec):
    """Nodes whose link or MTU differs."""

    nodes: tuple[int, ...]
    mtu: int | None = None


@dataclass(frozen=True, kw_only=True)
class PairSpec(_Settings):
    """Ordered pairs whose link differs: from each of `from` to each of `to`."""

    from_: Annotated[tuple[int, ...], Field(alias="from")]
    to: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MatrixSpec:
    """Links between regions: row is from, column is to, the diagonal is within a region."""

    __pydantic_config__ = STRICT

    regions: tuple[str, ...]
    rate: Any = None
    """One text for all, or a row of texts for each region."""
    delay: Any = None
    """One way; as `rate`."""
    round_trip: str | None = None
    """A .csv of round trips between regions, half of which is each way's delay; in place of `delay`."""
    nodes_per_region: int = 1
    """The preset's own number of nodes; node k is in region k modulo the number of regions, whatever the number."""

    def __post_init__(self) -> None:
        count = len(self.regions)
        at_least(1, regions=count, nodes_per_region=self.nodes_per_region)
        if len(set(self.regions)) < count:
            raise UsageError("two regions have the same name; give each its own")
        if self.rate is None and self.delay is None and self.round_trip is None:
            raise UsageError("none of rate, delay and round_trip is given; write at least one of them")
        if self.delay is not None and self.round_trip is not None:
            raise UsageError("delay and round_trip are given; write one of them")
        for name in ("rate", "delay"):
            value = getattr(self, name)
            if value is None or isinstance(value, str):
                continue
            if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
                raise UsageError(f"{name} = {value!r} is neither one text nor rows of texts")
            widths = sorted({len(row) for row in value})
            if len(value) != count or widths != [count]:
                wide = " or ".join(map(str, widths)) or "0"
                raise UsageError(
                    f"{name} has {len(value)} rows of {wide} values, and there are {count} regions; "
                    f"write {count} rows of {count} values"
                )

    def settings(self) -> list[list[LinkSettings]]:
        """Of the link from each region to each; raises the emulation's `UsageError`."""
        return [[self._between(first, second) for second in self.regions] for first in self.regions]

    def _between(self, first: str, second: str) -> LinkSettings:
        row, column = self.regions.index(first), self.regions.index(second)
        texts = {}
        for name in ("rate", "delay"):
            value = getattr(self, name)
            if value is not None:
                texts[name] = value if isinstance(value, str) else value[row][column]
        return parse_settings(texts, f"[matrix] from {first} to {second}", "rate")


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network of any number of nodes, or of a certain one."""

    __pydantic_config__ = STRICT

    name: str
    source: str
    """Where the figures come from, and which of them come from nowhere."""
    accounting: Literal["nic", "pair"]
    """Whose a rate is: a node's access link's, or each ordered pair's."""
    nodes: int | None = None
    """How many, unless asked otherwise."""
    mtu: int = 1500
    framing: Literal["layer2", "ethernet"] = "layer2"
    link: LinkSpec = field(default_factory=LinkSpec)
    node: tuple[NodeSpec, ...] = ()
    pair: tuple[PairSpec, ...] = ()
    matrix: MatrixSpec | None = None

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise UsageError("source is empty; say where the figures come from")
        if self.accounting != "pair" and (self.pair or self.matrix is not None):
            what = "[[pair]]" if self.pair else "[matrix]"
            raise UsageError(f'{what} gives links of pairs; write accounting = "pair" for it')
        if self.accounting == "pair" and any(each.down is not None for each in (self.link, *self.node)):
            raise UsageError(
                'down is given with accounting = "pair", where a pair\'s two directions are two pairs; leave it out'
            )
        if self.matrix is not None and self.nodes is not None:
            raise UsageError("nodes and [matrix] are given; nodes_per_region says how many there are, leave nodes out")

    def network(self, nodes: int | None = None) -> Network:
        """With so many nodes, or the preset's own number. Raises `UsageError` where they do not fit."""
        count = self.nodes if nodes is None else nodes
        if count is None and self.matrix is not None:
            count = len(self.matrix.regions) * self.matrix.nodes_per_region
        if count is None:
            raise UsageError(f"{self.name} has no number of nodes of its own; say how many there are.")
        try:
            return self._build(count)
        except EmulationUsageError as error:
            own = f" (with {count} nodes)" if nodes not in (None, self.nodes) else ""
            raise UsageError(f"{self.name}{own}: {error}") from None

    def _build(self, count: int) -> Network:
        link = alter(Link(), self.link.settings("[link]"))
        network = replace(star(count, link, self.accounting), mtu=self.mtu, framing=self.framing)
        if self.matrix is not None:
            network = _placed(network, self.matrix)
        for number, spec in enumerate(self.node, 1):
            network = _altered_nodes(network, spec, f"[[node]] {number}")
        for number, spec in enumerate(self.pair, 1):
            network = _altered_pairs(network, spec, f"[[pair]] {number}")
        return network


def _placed(network: Network, matrix: MatrixSpec) -> Network:
    """With links of pairs, nodes placed in turn over the regions; every pair has one of its own."""
    links = [[alter(network.link, settings) for settings in row] for row in matrix.settings()]
    count = len(links)
    pair_links = tuple((a.index, b.index, links[a.index % count][b.index % count]) for a, b in network.pairs)
    return replace(network, link=links[0][1 % count], pair_links=pair_links)


def _changed(network: Network, change: Change, where: str) -> Network:
    try:
        change.check(network)
        return change.apply(network)
    except EmulationUsageError as error:
        raise EmulationUsageError(f"{where}: {error}") from None


def _altered_nodes(network: Network, spec: NodeSpec, where: str) -> Network:
    settings = spec.settings(where)
    if not spec.nodes or (not settings and spec.mtu is None):
        raise EmulationUsageError(f"{where} changes nothing; name nodes, and a setting or an mtu.")
    if settings:
        network = _changed(network, Change(at_seconds=0, nodes=spec.nodes, settings=settings), where)
    if spec.mtu is not None:
        mtus = dict(network.node_mtus) | dict.fromkeys(spec.nodes, spec.mtu)
        network = replace(network, node_mtus=tuple(sorted(mtus.items())))
    return network


def _altered_pairs(network: Network, spec: PairSpec, where: str) -> Network:
    settings = spec.settings(where)
    pairs = tuple((first, second) for first, second in product(spec.from_, spec.to) if first != second)
    if not pairs or not settings:
        raise EmulationUsageError(f"{where} changes nothing; name different nodes in from and to, and a setting.")
    return _changed(network, Change(at_seconds=0, pairs=pairs, settings=settings), where)


def network_spec(name: str) -> NetworkSpec:
    """The preset called `name`, or the one in the TOML file `name`, with round trips as the delays that they are."""
    spec = load_toml(NetworkSpec, "networks", name)
    if spec.matrix is None or spec.matrix.round_trip is None:
        return spec
    folder = Path(name).parent if name.endswith(".toml") else EXPERIMENTS / "networks"
    delays = _delays(folder / spec.matrix.round_trip, spec.matrix.regions)
    return replace(spec, matrix=replace(spec.matrix, delay=delays, round_trip=None))


def _delays(path: Path, regions: tuple[str, ...]) -> list[list[str]]:
    """One way between regions, from a table of round trips: columns from, to (or sender, receiver) and round_trip_ms.

    A way that is not there is as long as the one back; within a region there is no delay unless the table has one.
    Raises `UsageError` with the line, or the pair that is missing.
    """
    found: dict[tuple[str, str], float] = {}
    lines = [line for line in read_text(path).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, skipinitialspace=True)]
    names = [name.lower() for name in rows[0]] if rows else []
    ends = next((ends for ends in (("from", "to"), ("sender", "receiver")) if {*ends} <= {*names}), None)
    if ends is None or "round_trip_ms" not in names:
        raise UsageError(
            f"{path.name} has the columns {', '.join(names) or '(none)'}; a table of round trips needs from, to (or "
            "sender, receiver) and round_trip_ms"
        )
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise UsageError(f"{path.name}, row {number}: {len(row)} values for the {len(names)} columns")
        cells = dict(zip(names, row, strict=True))
        if not _MILLISECONDS.fullmatch(cells["round_trip_ms"]):
            raise UsageError(f"{path.name}, row {number}: {cells['round_trip_ms']!r} is no number of milliseconds")
        pair = (cells[ends[0]], cells[ends[1]])
        if pair in found:
            raise UsageError(
                f"{path.name}, row {number}: {pair[0]} to {pair[1]} stands there twice; leave one round trip of each "
                "pair, its median for example"
            )
        found[pair] = float(cells["round_trip_ms"])
    known = {name for pair in found for name in pair}
    for region in regions:
        if region not in known:
            close = difflib.get_close_matches(region, known, n=1, cutoff=0)
            raise UsageError(f"{path.name} has no {region!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return [[_one_way(path, found, first, second) for second in regions] for first in regions]


def _one_way(path: Path, found: dict[tuple[str, str], float], first: str, second: str) -> str:
    ways = [found[pair] for pair in ((first, second), (second, first)) if pair in found]
    if not ways and first != second:
        raise UsageError(f"{path.name} has no round trip between {first} and {second}; add a row")
    return f"{round(ways[0] * 500) if ways else 0}us"


def network_from(name: str, nodes: int | None = None) -> Network:
    """The network called `name`, or the one in the TOML file `name`, with `nodes` nodes or its own number of them.

    Nodes are placed in turn over a preset's regions. Raises `UsageError` for a preset that is not there or not valid,
    and for one that names nodes which are not there.
    """
    return network_spec(name).network(nodes)
