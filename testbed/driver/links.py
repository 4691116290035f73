"""The links of a comparison: unshaped for what is learned, shaped and proven for what is timed.

Three kinds of link an arm can have. `shaped`: the kernel holds it to the asked rate, read back and measured.
`unshaped`: as fast as this machine. `modelled`: unshaped, and the rest of bytes / rate + round trip is waited;
for the cluster's link, for rates beyond this machine, and on host nodes. Modelled is never called measured.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import TypedDict

from emulation.errors import LinkError
from emulation.kernel.facts import Readback, ShaperFacts
from emulation.measure import verify
from emulation.measure.measurement import Capacity, Goodput, Proof
from emulation.nodes.base import Backend
from emulation.nodes.notices import Notices
from emulation.player import Player
from emulation.spec.network import goodput_bps
from emulation.spec.units import format_rate, parse_rate
from testbed.config import Arm
from testbed.driver.results import ArmResult
from testbed.pace import Plan, plan_for
from testbed.records import LinkGoodput, LinkKind, write_json
from testbed.settings.emulate import Settings

__all__ = ["Links", "Meanwhile"]

_UNPACED_MESSAGE_BYTES = 4096
"""What a compressed message of a small model may have."""
_LOOK_SECONDS = 1.0
"""Between two readbacks while steps are taken; a look costs some tens of milliseconds."""
_SHARE_OF_CAPACITY = 0.7
"""Beyond this share of what the machine carries all to all, a rate counts as one that it does not carry."""


class ModelledLink(TypedDict, total=False):
    """What `plan_for` needs to know of a link that is waited for."""

    modelled_goodput_bps: float
    round_trip_seconds: float


@dataclass(frozen=True, kw_only=True)
class Meanwhile:
    """What has become of shaped links during a step."""

    problems: list[str] = field(default_factory=list)
    """What has changed of them, in words."""
    lossless: bool = False
    """Whether no queue has dropped a packet, and nothing else was asked to lose or reorder any."""


class Links:
    """Shapes and measures, and knows what each arm's link is."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self.settings = settings
        self.backend = backend
        self.network = replace(
            settings.network, nodes=backend.network.nodes, smallest_message_bytes=self._smallest_message()
        )
        """With the links under test."""
        self.shapable = settings.backend != "host"
        self.measured: dict[str, Proof] = {}
        """By phase: preflight, before, after."""
        self.readback: Readback = {"nodes": {}, "cuts": [], "delay_line": []}
        self.round_trip_seconds = 0.0
        self.capacity: Capacity | None = None

    def _smallest_message(self) -> int | None:
        """Bytes of the smallest message that a paced arm exchanges; without a pace a few thousand."""
        settings = self.settings
        if settings.target is None:
            return _UNPACED_MESSAGE_BYTES
        plans = [
            plan_for(arm, settings.preset, settings.target, timed_layers=1) for arm in settings.arms if arm.exchanges
        ]
        sizes = [each for plan in plans for each in (plan.message_bytes, plan.back_message_bytes, plan.first_bytes)]
        return min(filter(None, sizes), default=None)

    def preflight(self) -> str:
        """Prove the link before minutes are spent on learning; then take the shapers off. What was found, in words."""
        text = self.explore()
        if not self.shapable:
            return text
        text = self.shape_and_verify("preflight")
        self.backend.shape(self.network.unshaped())
        return text

    def explore(self, known: "Links | None" = None) -> str:
        """What this machine carries, as measured now or `known` of the same nodes, in words; raises LinkError if it is
        too little."""
        if known is None or known.capacity is None:
            self.capacity = verify.capacity(self.backend)
            self.round_trip_seconds = self.capacity.round_trip_us / 1e6
        else:
            self.capacity, self.round_trip_seconds = known.capacity, known.round_trip_seconds
        most = self.capacity.aggregate_bps
        carried = f"this machine carries {most / 1e9:.1f} Gbit/s between all nodes together"
        if not self.shapable:
            return f"host nodes: loopback, unshaped; {carried}"
        under_test = any(arm.link == "bw" for arm in self.settings.arms)
        if under_test and self.network.total_bps > _SHARE_OF_CAPACITY * most:
            asked = f"{format_rate(self.settings.rate_bps)} for {self.settings.nodes} nodes is beyond this machine"
            if self.network.impaired or not self.network.uniform:
                raise LinkError(f"{asked}, and only a plain rate can be modelled instead: {carried}. Take a lower one.")
            if self.settings.schedule is not None:
                raise LinkError(f"{asked}, and a modelled link plays no schedule: {carried}. Take a lower one.")
            self.shapable = False
            return f"{asked}, so links stay unshaped: {carried}"
        return carried

    def shape_and_verify(self, phase: str) -> str:
        """Shape, read back, measure; raises LinkError out of tolerance. What was found, in words."""
        if not self.shapable:
            return "links stay unshaped"
        self.backend.shape(self.network)
        self.readback = self.backend.check_readback()
        return self._verify(phase)

    @contextmanager
    def playing(self, result: ArmResult, report: Callable[[str], None]) -> Iterator[Callable[[], None]]:
        """The schedule, if there is one, on a shaped arm's links while it trains; then the links as they were.

        Gives what to call now and then: it raises what must end the run.
        """
        schedule = self.settings.schedule
        if schedule is None or result.link != "shaped":
            yield self.backend.check_alive
            return
        tell = lambda event: report(f"  {event['applied_seconds']:.2f} s: {event['what']}")  # noqa: E731
        with Player(self.backend, schedule, on_event=tell) as player:
            player.start()

            def watch() -> None:
                player.check()
                self.backend.check_alive()

            yield watch
            result.events = player.events
        self.backend.heal()
        for node in self.network.nodes:
            self.backend.link_up(node)
            self.backend.thaw(node)
        self.backend.change(self.network)

    def verify_again(self) -> str:
        """Measure once more, after the timed steps."""
        return self._verify("after") if self.shapable and "before" in self.measured else "links were unshaped"

    def _verify(self, phase: str) -> str:
        measured = verify.verify(self.backend, self.network)
        self.measured[phase] = measured
        return f"links proven {phase}: {verify.proof(self.network, measured)}"

    # -- what an arm's link is

    def kind(self, arm: Arm, *, paced: bool) -> LinkKind:
        """shaped | unshaped | modelled."""
        if arm.link == "bw" and self.shapable:
            return "shaped"
        return "modelled" if paced else "unshaped"

    def modelled(self, arm: Arm) -> ModelledLink:
        """What `plan_for` needs to know of a link that is waited for; nothing for a real one."""
        target = self.settings.target
        if target is None or (arm.link == "bw" and self.shapable):
            return {}
        rate = parse_rate(target.fast_rate) if arm.link == "fast" else self.settings.rate_bps
        goodput = goodput_bps(rate, self.network.mtu, self.network.framing)
        if self.settings.accounting == "nic":
            goodput /= self.settings.nodes - 1
        return {"modelled_goodput_bps": goodput, "round_trip_seconds": self.round_trip_seconds}

    def goodput_bps(self) -> float:
        """Measured under full load: of a pair, or of a node where the rate is a node's; the least where they differ."""
        link = self.network.links[0]
        if self.network.uniform and link.down_bps != link.rate_bps and self.settings.accounting == "nic":
            slower = "down" if (link.down_bps or 0) < (link.rate_bps or 0) else "up"
            lines = [each for each in self._lines("together") if each.direction == slower]
        else:
            lines = self.bound()
        goodputs = [each.goodput_bps for each in lines]
        return fmean(goodputs) if self.network.uniform else min(goodputs)

    def bound(self) -> list[Goodput]:
        """Measured lines that the link alone held back: those under full load, or where none is, each alone."""
        for phase in ("together", "alone"):
            lines = [each for each in self._lines(phase) if _is_bound(each)]
            if lines:
                return lines
        return []

    def _lines(self, phase: str) -> list[Goodput]:
        measured = self.measured.get("before") or self.measured["preflight"]
        return [each for each in measured.links if each.phase == phase]

    def pair_goodput_bps(self, arm: Arm) -> float:
        """What one of a node's peers gets while all exchange."""
        modelled = self.modelled(arm)
        if modelled:
            return modelled["modelled_goodput_bps"]
        return self.goodput_bps() / (self.settings.nodes - 1 if self.settings.accounting == "nic" else 1)

    def closed_form_seconds(self, arm: Arm, plan: Plan) -> float:
        """Compute plus bytes / measured goodput, of a whole step; and each exchange's way through a shaped link."""
        on_the_way = 0.0 if self.modelled(arm) else self._on_the_way(plan)
        return plan.compute_seconds + plan.exchange_seconds(self.pair_goodput_bps(arm)) + on_the_way

    def _on_the_way(self, plan: Plan) -> float:
        return plan.messages_to_a_peer(plan.layers) * self.network.longest_round_trip_us / 2e6

    def least_seconds(self, arm: Arm, plan: Plan | None, wire_bytes: float | None) -> float:
        """Below which a step cannot have sent so many bytes per node: its compute if paced, and bytes / rate, but for
        what the shapers' buckets pass at once; 0 on a link that is not shaped."""
        rates = [link.rate_bps for link in self.network.links if link.rate_bps is not None]
        if wire_bytes is None or not rates or self.kind(arm, paced=plan is not None) != "shaped":
            return 0.0
        layers = plan.layers if plan else self.settings.preset.model.layers
        to_one = wire_bytes / (1 if self.settings.accounting == "nic" else self.settings.nodes - 1)
        at_once = (2 * layers + 2) * _deepest_bucket(self.readback)
        compute = plan.compute_seconds if plan else 0.0
        return compute + max(0.0, to_one - at_once) * 8 / max(rates)

    @property
    def chancy(self) -> bool:
        """Whether times differ from step to step by what the links were asked to be."""
        chance = any(link.loss or link.jitter_us or link.reorder for link in self.network.links)
        return chance or self.settings.schedule is not None

    @contextmanager
    def listening(self, kind: str) -> Iterator[Callable[[], Meanwhile]]:
        """Gives what to call after each step: what has become of the links since the last call."""
        if kind != "shaped" or self.settings.schedule is not None:
            yield Meanwhile
            return
        before, looked = _drops(self.backend.readback()), time.monotonic()
        with Notices(self.backend) as notices:

            def listen() -> Meanwhile:
                nonlocal before, looked
                found, lossless = notices.heard(), False
                if time.monotonic() - looked >= _LOOK_SECONDS:  # after each step, unless they are quick
                    try:
                        now = _drops(self.backend.check_readback())
                        lossless, before = now == before and not self.network.impaired, now
                    except LinkError as error:
                        found.append(f"{error}")
                    looked = time.monotonic()
                problems = [f"the links were changed meanwhile: {text}" for text in found]
                return Meanwhile(problems=problems, lossless=lossless)

            yield listen

    def other_accounting_seconds(self, plan: Plan) -> float:
        """The same step if the rate were counted the other way, at all of the target's nodes. Closed form."""
        target, rate = self.settings.target, self.settings.rate_bps
        assert target is not None
        peers = target.nodes - 1 if self.settings.accounting == "pair" else 1
        goodput = goodput_bps(rate, self.network.mtu, self.network.framing)
        return plan.compute_seconds + peers * plan.exchange_seconds(goodput) + self._on_the_way(plan)

    def write(self, arm: Arm, kind: str) -> None:
        """`link/` of an arm: what was asked, what the kernel has, what was measured."""
        folder = self.settings.folder_of(arm) / "link"
        asked = {
            "kind": kind,
            "rate_bps": self.settings.rate_bps if arm.link == "bw" else None,
            "modelled_goodput_bps": self.modelled(arm).get("modelled_goodput_bps"),
            "links": [asdict(link) for link in self.network.links] if arm.link == "bw" else [],
            "network": self.backend.describe(),
        }
        write_json(folder / "requested.json", asked)
        write_json(folder / "readback.json", self.readback if kind == "shaped" else {})
        measured = self.measured if kind == "shaped" else {"capacity": self.capacity}
        found = {phase: {"schema": each.SCHEMA, **asdict(each)} for phase, each in measured.items() if each}
        write_json(folder / "measured.json", found)

    def evidence(self) -> tuple[LinkGoodput, ...]:
        """Every measured link that was held back by its own rate, flat, for tables and figures."""
        lines: dict[tuple[str, str, str], dict[str, float | None]] = {}
        for phase, measured in self.measured.items():
            for link in filter(_is_bound, measured.links):
                name = f"{link.node}→{link.peer}" if link.peer else link.node
                line = lines.setdefault((phase, name, link.direction), {"expected_bps": link.expected_bps})
                line[f"{link.phase}_bps"] = link.goodput_bps
                line[f"{link.phase}_ratio"] = link.ratio
        return tuple(
            LinkGoodput(phase=phase, name=name, direction=direction, **line)  # pyrefly: ignore
            for (phase, name, direction), line in lines.items()
        )


def _shapers(readback: Readback) -> list[ShaperFacts]:
    """At both ends of all nodes."""
    return [node[end] for node in readback["nodes"].values() for end in ("tx", "rx") if end in node]


def _drops(readback: Readback) -> int:
    """Packets that all shapers have dropped since they were made."""
    return sum(shaper.get("drops", 0) for shaper in _shapers(readback))


def _deepest_bucket(readback: Readback) -> int:
    """Bytes of the deepest bucket of all shapers and their classes, as the kernel has them."""
    shapers = _shapers(readback)
    classes = [each for shaper in shapers for each in shaper.get("classes", {}).values()]
    return max((each.get("burst_bytes", 0) for each in (*shapers, *classes)), default=0)


def _is_bound(line: Goodput) -> bool:
    """Whether a measured line says something of its link's rate."""
    return line.binding and line.ratio is not None
