"""Measure every link and compare it with what was asked for.

What is compared is the TCP payload that arrives, against the closed form of `goodput_bps`. Acknowledgements
of the flows in the other direction pass the same shaper: their number is read from the kernel (TCP_INFO)
and their 66 bytes each are taken from the rate before it is turned into the expected goodput. `arrived_bps`
counts segments as they come, `goodput_bps` bytes in order: they differ for a moment when a segment is lost
and what follows waits for it.

    alone     nic: n_i -> n_i+1 for all nodes at once, so that each shaper carries one flow
              pair: n_i -> n_i+r for all nodes at once, in N-1 rounds r
    together  every node sends to every other
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from emulation.errors import EmulationError, LinkError
from emulation.isolation import check_isolation
from emulation.network import (
    ACK_BYTES,
    ETHERNET_HEADER_BYTES,
    FRAMING,
    TCP_IP_HEADER_BYTES,
    Network,
    Node,
    burst_bytes,
    goodput_bps,
    queue_bytes,
)
from emulation.nodes.base import Backend
from emulation.nodes.netns import NetnsBackend
from emulation.units import format_rate

__all__ = ["TOLERANCE", "capacity", "check", "measure", "verify"]

SCHEMA = 1
TOLERANCE = 0.02
"""Largest accepted departure of a link's goodput from the expected one."""
PINGS = 20
CONTENDED_TOLERANCE = 0.05
"""The same for the sum of all links when all nodes send to all over access links."""
SLOW_BPS = 50_000_000
"""Below it a window holds too few packets in a second, and queues take longer to settle."""
FEWEST_PACKETS, LONGEST_WINDOW_SECONDS = 300, 20.0
"""What a window must hold, so that one more or less is no news."""
DRAIN_SECONDS = 0.02
"""Between rounds, beside the time that the shapers' queues take to run empty."""
CONNECT_SECONDS = 0.05
"""Every connection of a round is made before its first flow starts."""

Flow = tuple[Node, Node]


class Probers:
    """One prober per node, alive inside the `with` block."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.nodes = backend.network.nodes
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._stop)
            root = str(Path(__file__).resolve().parent.parent)
            for node in self.nodes:
                argv = [sys.executable, "-P", "-S", "-m", "emulation.prober", node.address]
                environment = {"PYTHONPATH": root, "PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1"}
                process = self.backend.popen(node, argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self._processes.append(process)
            for node in self.nodes:
                self._read(node)
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
                    pipe.close()
        self._processes = []

    def tell(self, node: Node, **command: Any) -> None:
        """Send one command to a node's prober."""
        pipe = self._processes[node.index].stdin
        assert pipe is not None
        pipe.write(json.dumps(command).encode() + b"\n")
        pipe.flush()

    def _read(self, node: Node) -> dict[str, Any]:
        pipe = self._processes[node.index].stdout
        assert pipe is not None
        line = pipe.readline()
        if not line:
            raise EmulationError(f"the prober on {node.name} ended unasked; its output is above.")
        return json.loads(line)

    def flows(
        self, flows: Sequence[Flow], warm_seconds: float, seconds: float, drain_seconds: float = DRAIN_SECONDS
    ) -> dict[Flow, dict[str, float]]:
        """Run flows at once; each one's goodput and acknowledgements over the steady window."""
        start = time.monotonic() + CONNECT_SECONDS
        begin, end = start + warm_seconds, start + warm_seconds + seconds
        for node in self.nodes:
            to = [target.address for source, target in flows if source == node]
            self.tell(node, do="flows", to=to, start=start, begin=begin, end=end, stop=end + 0.03)
        answers = [self._read(node) for node in self.nodes]
        time.sleep(drain_seconds)
        nothing = dict.fromkeys(("goodput_bps", "segments_per_second", "acks_per_second", "seconds"), 0.0)
        return {
            (source, target): answers[target.index]["received"].get(source.address, nothing) for source, target in flows
        }

    def ping(self, source: Node, target: Node) -> dict[str, Any]:
        """Round trips on the idle link, in microseconds."""
        self.tell(source, do="ping", to=target.address, count=PINGS)
        times = self._read(source)["microseconds"]
        good = sorted(each for each in times if each is not None)
        return {
            "from": source.name,
            "to": target.name,
            "lost": len(times) - len(good),
            "median_us": round(statistics.median(good), 1) if good else None,
            "p99_us": round(good[-1], 1) if good else None,
        }


def _windows(network: Network, seconds: float | None) -> tuple[float, float]:
    """Warm-up and steady window in seconds."""
    rate = network.link.rate_bps
    slow = rate is not None and rate < SLOW_BPS
    if network.accounting == "nic":
        warm, window = (0.6, 2.0) if slow else (0.35, 1.0)
    else:
        warm, window = (0.4, 0.9) if slow else (0.35, 0.7)
    if rate is not None:
        frame_seconds = (network.mtu + ETHERNET_HEADER_BYTES) * 8 / rate
        warm = max(warm, 3 * burst_bytes(rate, network.mtu) * 8 / rate)
        window = min(LONGEST_WINDOW_SECONDS, max(window, FEWEST_PACKETS * frame_seconds))
    return warm, window if seconds is None else seconds


def _rounds(network: Network) -> list[list[Flow]]:
    """The rounds of "alone"."""
    nodes = network.nodes
    last = 2 if network.accounting == "nic" else len(nodes)
    return [[(node, nodes[(node.index + r) % len(nodes)]) for node in nodes] for r in range(1, last)]


def _shaper_lines(network: Network, phase: str, flows: dict[Flow, dict[str, float]]) -> list[dict[str, Any]]:
    """Goodput through each shaper that the flows loaded, beside what it should be."""
    if network.accounting == "pair":
        groups = {(a, b, "pair"): ([(a, b)], [(b, a)]) for a, b in flows}
    else:
        groups = {}
        for node in network.nodes:
            out = [flow for flow in flows if flow[0] == node]
            into = [flow for flow in flows if flow[1] == node]
            groups[(node, None, "up")] = (out, into)
            groups[(node, None, "down")] = (into, out)
    lines = []
    for (node, peer, direction), (carried, acknowledged) in groups.items():
        goodput = sum(flows[flow]["goodput_bps"] for flow in carried)
        segments = sum(flows[flow]["segments_per_second"] for flow in carried)
        arrived = segments * (network.mtu - TCP_IP_HEADER_BYTES) * 8
        acks = sum(flows[flow]["acks_per_second"] for flow in acknowledged if flow in flows)
        rate = network.link.rate_bps
        expected = goodput_bps(max(rate - acks * ACK_BYTES * 8, rate / 2), network.mtu) if rate else None
        lines.append(
            {
                "phase": phase,
                "direction": direction,
                "node": node.name,
                "peer": peer.name if peer else None,
                "goodput_bps": round(goodput),
                "arrived_bps": round(arrived),
                "expected_bps": round(expected) if expected else None,
                "ratio": round(arrived / expected, 5) if expected else None,
                "ack_share": round(acks * ACK_BYTES * 8 / rate, 5) if rate else None,
            }
        )
    return lines


def measure(backend: Backend, network: Network, seconds: float | None = None) -> dict[str, Any]:
    """Measure every link of `network`, which `backend` has built; `seconds` sets the steady window of a
    round."""
    began = time.monotonic()
    network = replace(network, nodes=backend.network.nodes)
    warm, window = _windows(network, seconds)
    rate, mtu = network.link.rate_bps, network.mtu
    drain = DRAIN_SECONDS + (queue_bytes(rate, mtu) * 8 / rate if rate else 0.0)
    nodes = network.nodes
    links: list[dict[str, Any]] = []
    round_trips: list[dict[str, Any]] = []
    aggregate = 0.0
    with Probers(backend) as probers:
        round_trips = [probers.ping(a, b) for a in nodes for b in nodes if a != b]
        for flows in _rounds(network) if len(nodes) > 1 else []:
            links += _shaper_lines(network, "alone", probers.flows(flows, warm, window, drain))
        if len(nodes) > 1:
            results = probers.flows([(a, b) for a in nodes for b in nodes if a != b], warm, window, drain)
            links += _shaper_lines(network, "together", results)
            aggregate = sum(each["goodput_bps"] for each in results.values())
    return {
        "schema": SCHEMA,
        "rate_bps": rate,
        "accounting": network.accounting,
        "framing": FRAMING,
        "nodes": len(nodes),
        "expected_goodput_bps": round(goodput_bps(rate, network.mtu)) if rate else None,
        "warm_seconds": warm,
        "window_seconds": window,
        "links": links,
        "round_trips": round_trips,
        "aggregate_bps": round(aggregate),
        "wall_seconds": round(time.monotonic() - began, 3),
    }


def check(measured: dict[str, Any], tolerance: float = TOLERANCE) -> list[str]:
    """What is out of tolerance, in plain sentences; an empty list is a proven network.

    Alone, and with accounting "pair" always, each link has to be within the tolerance. When all nodes send
    to all over access links, each flow passes two queues that it shares with different others, and
    congestion control decides who gets what: there no link may carry more than it should, and all of them
    together at most 5 % less.
    """
    contended = [each for each in measured["links"] if each["phase"] == "together" and not each["peer"]]
    single = [each for each in measured["links"] if each not in contended]
    problems = [_problem(each) for each in single if each["ratio"] and abs(each["ratio"] - 1) > tolerance]
    problems += [_problem(each) for each in contended if each["ratio"] and each["ratio"] - 1 > tolerance]
    problems += [f"no byte arrived: {_where(each)}" for each in measured["links"] if each["ratio"] == 0]
    ratios = [each["ratio"] for each in contended if each["ratio"] is not None]
    if ratios and statistics.mean(ratios) < 1 - max(tolerance, CONTENDED_TOLERANCE):
        problems.append(f"all links together carried {(statistics.mean(ratios) - 1) * 100:+.1f} % of what they should")
    lost = sum(each["lost"] for each in measured["round_trips"])
    if lost:
        problems.append(f"{lost} echo packets got lost on idle links")
    return problems


def _where(link: dict[str, Any]) -> str:
    ends = f"{link['node']} -> {link['peer']}" if link["peer"] else f"{link['node']} {link['direction']}"
    return f"{ends}, {link['phase']}"


def _problem(link: dict[str, Any]) -> str:
    return (
        f"{_where(link)}: {link['arrived_bps'] / 1e6:.3f} Mbit/s of goodput, expected "
        f"{link['expected_bps'] / 1e6:.3f} ({(link['ratio'] - 1) * 100:+.1f} %)"
    )


def verify(backend: Backend, network: Network, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Measure and check, once more if the first attempt is out of tolerance; LinkError if the second is
    too."""
    if isinstance(backend, NetnsBackend):
        backend.check_readback()
        check_isolation(backend)
    attempts = []
    for _ in range(2):
        measured = measure(backend, network)
        problems = check(measured, tolerance)
        attempts.append({"measured": measured, "problems": problems})
        if not problems:
            return measured | {"ok": True, "tolerance": tolerance, "attempts": attempts}
    rate = network.link.rate_bps
    raise LinkError(
        f"links of {format_rate(rate) if rate else 'any rate'} ({network.accounting}) were asked for; "
        f"measured twice, found {'; '.join(problems[:3])}"
        f"{f' and {len(problems) - 3} more' if len(problems) > 3 else ''}. "
        "Try again when the machine is idle, with fewer nodes, or with a lower rate."
    )


def capacity(backend: Backend) -> dict[str, Any]:
    """What this machine carries all to all, over links that are now unshaped; about half a second."""
    nodes = backend.network.nodes
    with Probers(backend) as probers:
        flows = probers.flows([(a, b) for a in nodes for b in nodes if a != b], 0.1, 0.3)
    rates = [each["goodput_bps"] for each in flows.values()]
    pairs = max(1, len(rates))
    return {
        "schema": SCHEMA,
        "aggregate_bps": round(sum(rates)),
        "per_pair_bps": round(sum(rates) / pairs),
        "slowest_pair_bps": round(min(rates, default=0)),
        "per_node_bps": round(sum(rates) / len(nodes)),
        "nodes": len(nodes),
    }
