"""What docs/network.md says of links, measured anew: `python benchmarks/links.py [grid|messages|scale|relay|all]`.

    grid      rate x one-way delay: goodput over the expected, added round trip, segments resent (cubic)
    messages  completion of single messages of 4 KB to 5 MB, each after a second of idleness
    scale     nodes up and down
    relay     the delay line's processor time with 8 saturated nodes
    slow      grid at rates that an emulated processor carries (benchmarks/netem_vm.py), with buckets for large messages

Prints Markdown tables; run it on an otherwise idle machine. Exit status 1 if a figure misses its goal.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emulation.errors import EmulationError
from emulation.kernel.world import run_in_world
from emulation.measure import verify
from emulation.measure.probe_client import Probers, quantile
from emulation.nodes.netns import NetnsBackend
from emulation.shaping.sizes import segments_of, sizes
from emulation.spec.network import Link, Network, goodput_bps, star
from emulation.spec.units import format_delay, format_rate, format_size

RATES = (10_000_000, 100_000_000, 300_000_000, 1_000_000_000)
DELAYS_US = (0, 10_000, 25_000, 50_000)
SLOW_RATES, SLOW_DELAYS_US = (5_000_000, 10_000_000, 50_000_000), (0, 10_000, 50_000)
SIZES = (4_000, 16_000, 64_000, 256_000, 1_000_000, 5_000_000)
MESSAGES = 12
FRAME_BYTES = 1514
Delays = Literal["netem", "delay line"]


def grid(
    rates: tuple[int, ...], delays: tuple[int, ...], *, by: Delays | None, smallest: int | None = None
) -> list[str]:
    """Two nodes, access links, cubic."""
    missed = []
    print("| rate | delay one way | alone | together | added round trip, median | p99 | resent | by |")
    print("|---|---|---|---|---|---|---|---|")
    for rate in rates:
        base = None
        for delay in delays:
            network = star(2, Link(rate_bps=rate, delay_us=delay), "nic")
            network = replace(network, congestion_control="cubic", smallest_message_bytes=smallest)
            with NetnsBackend(network, delays=by) as backend:
                measured = verify.measure(backend, network)
                described = backend.describe()
            ratios = {
                phase: [1 + each.off for each in measured.links if each.phase == phase]
                for phase in ("alone", "together")
            }
            resent = sum(each.resent_segments for each in measured.links if each.direction == "up")
            median = max(ping.median_us or 0.0 for ping in measured.round_trips) / 1000
            p99 = max(ping.p99_us or 0.0 for ping in measured.round_trips) / 1000
            base = median if base is None else base
            added, added_p99 = median - base - 2 * delay / 1000, p99 - base - 2 * delay / 1000
            spans = [_span(ratios[phase]) for phase in ("alone", "together")]
            trips = [f"{added:+.2f} ms", f"{added_p99:+.2f} ms"]
            _row(format_rate(rate), format_delay(delay), *spans, *trips, resent, described["delays"] or "-")
            allowed = 0.01 if delay == 0 else 0.02
            worst = max(abs(ratio - 1) for ratio in ratios["alone"])
            where = f"{format_rate(rate)}, {format_delay(delay)}"
            missed += [f"{where}: goodput {worst:.1%} off"] if worst > allowed else []
            missed += [f"{where}: median round trip {added:+.2f} ms"] if delay and abs(added) > 0.5 else []
            missed += [f"{where}: p99 round trip {added_p99:+.2f} ms"] if delay and added_p99 > 1.5 else []
            missed += [f"{where}: {resent} segments resent"] if resent else []
    return missed


def messages(rates: tuple[int, ...], delays: tuple[int, ...], *, by: Delays | None) -> list[str]:
    """Two nodes, access links: time to the last byte's arrival over size / goodput + half a round trip."""
    missed = []
    print("| rate | delay | message | expected | p5 | median | p95 | within 5 % + 4 frames |")
    print("|---|---|---|---|---|---|---|---|")
    for rate in rates:
        for delay in delays:
            network = replace(star(2, Link(rate_bps=rate, delay_us=delay), "nic"), smallest_message_bytes=SIZES[0])
            with NetnsBackend(network, delays=by) as backend, Probers(backend) as probers:
                source, target = network.nodes
                trip = (probers.pings([(source, target)], 50)[0].median_us or 0.0) / 1e6
                for _ in range(6 if delay else 2):  # a window as large as the path asks for
                    probers.message(source, target, 5_000_000)
                for size in SIZES if rate > 20_000_000 else SIZES[:-1]:
                    expected = (size + 16) * 8 / goodput_bps(rate) + trip / 2
                    allowed = 0.05 * expected + 4 * FRAME_BYTES * 8 / rate
                    times = []
                    for _ in range(MESSAGES):
                        time.sleep(1.0)
                        times.append(probers.message(source, target, size))
                    times.sort()
                    low, middle, high = times[0], statistics.median(times), quantile(times, 0.95)
                    good = expected - allowed <= low and high <= expected + allowed
                    off = [f"{each / expected - 1:+.1%}" for each in (low, middle, high)]
                    link = (format_rate(rate), format_delay(delay), format_size(size))
                    _row(*link, f"{expected * 1e3:.2f} ms", *off, "yes" if good else "no")
                    if not good:
                        missed.append(f"{format_rate(rate)}, {format_delay(delay)}, {format_size(size)}: {high:.6f} s")
    return missed


def scale() -> list[str]:
    """Networks up, shaped and read back, and down."""
    missed = []
    print("| nodes | links | up | down |")
    print("|---|---|---|---|")
    for nodes, delay, goal in ((8, 0, 0.6), (32, 0, 2.0), (8, 20_000, 0.6), (32, 20_000, 2.0)):
        network = star(nodes, Link(rate_bps=100_000_000, delay_us=delay), "nic")
        backend = NetnsBackend(network, delays="delay line")
        began = time.monotonic()
        backend.open()
        up = time.monotonic() - began
        began = time.monotonic()
        backend.close()
        down = time.monotonic() - began
        what = "shaped" + (" and delayed" if delay else "")
        print(f"| {nodes} | {what} | {up:.2f} s | {down:.2f} s |", flush=True)
        missed += [f"{nodes} nodes up in {up:.2f} s"] if up > goal else []
        missed += [f"{nodes} nodes down in {down:.2f} s"] if down > 0.3 else []
    return missed


def relay() -> list[str]:
    """Eight nodes, 300 Mbit/s, each to each: processor time of the delay line, per node."""
    network = star(8, Link(rate_bps=300_000_000, delay_us=20_000), "nic")
    with NetnsBackend(network, delays="delay line") as backend:
        pid = backend.delay_line.pid
        assert pid is not None
        with Probers(backend) as probers:
            before, began = _cpu_seconds(pid), time.monotonic()
            flows = probers.flows(list(network.pairs), 1.0, 1.5, 6.0, 0.1)
            share = (_cpu_seconds(pid) - before) / (time.monotonic() - began)
        carried = sum(steady.payload_bytes * 8 / steady.seconds for _, steady in flows.values())
    print("| nodes | carried together | relay, of a core | per node |")
    print("|---|---|---|---|")
    print(f"| 8 | {carried / 1e9:.2f} Gbit/s | {share:.0%} | {share / 8:.1%} |", flush=True)
    return [f"the relay takes {share / 8:.1%} of a core per node"] if share / 8 > 0.08 else []


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def _span(ratios: list[float]) -> str:
    return f"{min(ratios):.3f} … {max(ratios):.3f}"


def _sizes() -> list[str]:
    """What is derived for a few networks."""
    print("| network | rate | super-packet | at once | deep bucket | queue |")
    print("|---|---|---|---|---|---|")
    for nodes, accounting in ((2, "nic"), (4, "pair"), (8, "nic")):
        for rate in RATES:
            network: Network = star(nodes, Link(rate_bps=rate), accounting)
            segments = segments_of(network, 0)
            depth = sizes(network, rate, network.link, segments, 0)
            depths = [f"{each / 1000:.1f} kB" for each in (depth.peak_bytes, depth.burst_bytes, depth.queue_bytes)]
            _row(f"{nodes}, `{accounting}`", format_rate(rate), f"{segments} packets", *depths)
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=["grid", "messages", "scale", "relay", "slow", "all"])
    parser.add_argument("--by", choices=["netem", "delay line"], help="what delays (default: netem where there is one)")
    parser.add_argument("--rate", type=int, action="append", help="only these rates, in bit/s")
    options = parser.parse_args()
    rates = tuple(options.rate or RATES)
    parts: dict[str, list[Callable[[], list[str]]]] = {
        "grid": [lambda: grid(rates, DELAYS_US, by=options.by)],
        "messages": [lambda: messages(rates, (0, 25_000), by=options.by)],
        "scale": [_sizes, scale],
        "relay": [relay],
        "slow": [lambda: grid(SLOW_RATES, SLOW_DELAYS_US, by=options.by, smallest=5_000_000)],
    }
    chosen = [part for name, every in parts.items() if name != "slow" for part in every]
    missed: list[str] = []
    for part in chosen if options.what == "all" else parts[options.what]:
        try:
            missed += part()
        except EmulationError as error:
            missed.append(str(error))
        print(flush=True)
    for text in missed:
        print(f"missed: {text}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(run_in_world(main))
