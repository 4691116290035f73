"""The probers of a network's nodes, and the few measurements that they make together."""

import json
import os
import select
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from emulation.errors import EmulationError
from emulation.kernel.process_tag import mark
from emulation.measure.measurement import RoundTrip, Window
from emulation.measure.probe_receiver import ProbeAnswer
from emulation.nodes.base import Backend
from emulation.spec.network import Node

__all__ = ["Flow", "Probers", "quantile"]

CONNECT_SECONDS = 0.05
"""Every connection of a round is made before its first flow starts, beside the round trip."""
PING_SECONDS = 0.002
PATIENCE_SECONDS = 30.0
"""For an answer, beyond the time that what was asked takes."""
_NOTHING = dict.fromkeys(("payload_bytes", "segments", "acks"), 0.0) | {"seconds": 1.0}

Flow = tuple[Node, Node]


class Probers:
    """One prober per node, alive inside the `with` block."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.nodes = backend.network.nodes
        self.round_trip_seconds = backend.network.longest_round_trip_us / 1e6
        self._processes: list[subprocess.Popen[bytes]] = []
        self._unread: dict[int, bytes] = {}
        self._busy_until: dict[int, float] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._stop)
            root = str(Path(__file__).resolve().parents[2])
            for node in self.nodes:
                argv = [self.backend.python, "-P", "-S", "-m", "emulation.measure.probe_agent", node.address]
                environment = {"PYTHONPATH": root, "PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", **mark()}
                process = self.backend.popen(node, argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self._processes.append(process)
            for node in self.nodes:
                self.read(node)
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
        self._processes = []

    def tell(self, node: Node, **command: Any) -> None:
        """Send one command to a node's prober."""
        pipe = self._processes[node.index].stdin
        assert pipe is not None
        now = time.monotonic()
        ends = command.get("stop", now + command.get("count", 0) * command.get("interval", 0.0))
        self._busy_until[node.index] = max(ends, self._busy_until.get(node.index, now))
        try:
            pipe.write(json.dumps(command).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError:
            raise _ended(node) from None

    def read(self, node: Node) -> ProbeAnswer:
        """A node's next answer."""
        pipe = self._processes[node.index].stdout
        assert pipe is not None
        now = time.monotonic()
        deadline = max(now, self._busy_until.get(node.index, now)) + PATIENCE_SECONDS
        unread = self._unread.pop(node.index, b"")
        while b"\n" not in unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise EmulationError(f"the prober on {node.name} does not answer: it is stopped, or starved.")
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                raise _ended(node)
            unread += chunk
        line, _, self._unread[node.index] = unread.partition(b"\n")
        return json.loads(line)

    def flows(
        self, flows: Sequence[Flow], first: float, warm: float, window: float, drain: float, *, streams: int = 1
    ) -> dict[Flow, tuple[Window, Window]]:
        """Run flows at once, each of so many connections.

        Each one's payload bytes, data segments and acknowledgements in its first seconds and, after `warm` seconds, in
        a steady window; `resent` segments of all flows from the same source stand in both.
        """
        start = time.monotonic() + CONNECT_SECONDS + 1.5 * self.round_trip_seconds + 0.001 * streams
        marks = [start, start + first, start + warm, start + warm + window]
        for node in self.nodes:
            to = [target.address for source, target in flows if source == node]
            self.tell(node, do="flows", to=to, streams=streams, start=start, marks=marks, stop=marks[-1] + 0.03)
        answers = [self.read(node) for node in self.nodes]
        time.sleep(drain)
        result = {}
        for source, target in flows:
            windows = answers[target.index]["received"].get(source.address) or [_NOTHING] * 3
            resent = answers[source.index]["resent_segments"]
            result[source, target] = (Window(**windows[0], resent=resent), Window(**windows[-1], resent=resent))
        return result

    def pings(self, pairs: Sequence[Flow], count: int, interval: float = PING_SECONDS) -> list[RoundTrip]:
        """UDP round trips of some pairs at once, each node in at most one as the asking one. In microseconds."""
        patience = 2 * self.round_trip_seconds + 0.25
        for source, target in pairs:
            self.tell(source, do="ping", to=target.address, count=count, interval=interval, patience=patience)
        lines = []
        for source, target in pairs:
            times = self.read(source)["microseconds"]
            good = sorted(each for each in times if each is not None)
            lines.append(
                RoundTrip(
                    source=source.name,
                    target=target.name,
                    sent=len(times),
                    lost=len(times) - len(good),
                    median_us=round(statistics.median(good), 1) if good else None,
                    p99_us=round(quantile(good, 0.99), 1) if good else None,
                    iqr_us=round(quantile(good, 0.75) - quantile(good, 0.25), 1) if good else None,
                )
            )
        return lines

    def losses(self, pairs: Sequence[Flow], count: int, interval: float) -> dict[Flow, dict[str, int]]:
        """Evenly spaced datagrams, each node to at most one other: `sent`, `came`, `gaps` in which others were missing.

        What came, but found the counting program too slow, counts as come.
        """
        for source, target in pairs:
            self.tell(source, do="datagrams", to=target.address, count=count, interval=interval)
        sent = {flow: self.read(flow[0])["sent"] for flow in pairs}
        time.sleep(2 * self.round_trip_seconds + 0.1)
        came = {}
        for _, target in pairs:
            self.tell(target, do="counted")
            came[target] = self.read(target)
        found = {}
        for flow in pairs:
            answer = came[flow[1]]
            counted = answer["counted"].get(flow[0].address, {"came": 0, "gaps": 1})
            found[flow] = {
                "sent": sent[flow],
                "came": counted["came"] + answer["overflow"],
                "gaps": counted["gaps"],
            }
        return found

    def message(self, source: Node, target: Node, size: int) -> float:
        """Seconds from the sending of a message's first byte to the arrival of its last."""
        self.tell(source, do="message", to=target.address, size=size, at=time.monotonic() + 0.005)
        self.read(source)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.tell(target, do="arrivals")
            arrivals = self.read(target)["arrivals"]
            if arrivals:
                return arrivals[-1]["seconds"]
            time.sleep(0.002)
        raise EmulationError(f"a message of {size} bytes from {source.name} to {target.name} never arrived.")


def _ended(node: Node) -> EmulationError:
    return EmulationError(f"the prober on {node.name} ended unasked; its output is above.")


def quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank quantile of a sorted sequence."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
