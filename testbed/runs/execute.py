"""Any command on every node of an emulated network, and `testbed verify`."""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from emulation import verify
from emulation.network import Link, Network, star
from emulation.nodes.netns import NetnsBackend
from emulation.shaping import netem
from emulation.units import parse_delay, parse_rate
from testbed.errors import UsageError

__all__ = ["network_for", "run_everywhere", "verify_links"]

_STOP_SECONDS = 5.0


def network_for(bw: str, delay: str, nodes: int, accounting: Literal["pair", "nic"]) -> Network:
    """The network that texts describe; raises `UsageError`."""
    if nodes < 2:
        raise UsageError(f"{nodes} nodes were asked for; a network has at least 2")
    link = Link(rate_bps=parse_rate(bw), delay_us=parse_delay(delay))
    netem.refuse(link)
    return star(nodes, link, accounting)


def verify_links(network: Network, *, as_json: bool) -> int:
    """Build, measure, print; 1 if a link is not what was asked. Runs inside a world."""
    with NetnsBackend(network) as backend:
        measured = verify.measure(backend, network)
        readback = backend.check_readback()
    problems = verify.check(measured)
    if as_json:
        print(json.dumps({**measured, "schema_version": 1, "problems": problems, "readback": readback}))
    else:
        _print_measured(measured, problems)
    return 1 if problems else 0


def _print_measured(measured: dict[str, Any], problems: list[str]) -> None:
    console = Console()
    table = Table(title="goodput of every link, Mbit/s (layer 2 framing: 95.6 % of the rate is goodput)")
    for name in ("link", "direction", "phase", "expected", "measured", "ratio"):
        table.add_column(name, justify="left" if name in ("link", "direction", "phase") else "right")
    for link in measured["links"]:
        name = f"{link['node']} → {link['peer']}" if link["peer"] else link["node"]
        table.add_row(
            name,
            link["direction"],
            link["phase"],
            f"{link['expected_bps'] / 1e6:.3f}",
            f"{link['goodput_bps'] / 1e6:.3f}",
            f"{link['ratio']:.4f}",
        )
    console.print(table)
    times = sorted(ping["median_us"] for ping in measured["round_trips"] if ping["median_us"] is not None)
    if times:
        console.print(
            f"round trip, idle: median {times[len(times) // 2] / 1e3:.2f} ms, largest {times[-1] / 1e3:.2f} ms"
        )
    for problem in problems:
        console.print(f"OUT OF TOLERANCE ({verify.TOLERANCE:.0%}): {problem}", style="bold red", markup=False)
    if not problems:
        console.print(f"all {len(measured['links'])} measurements within {verify.TOLERANCE:.0%} of what was asked")


def run_everywhere(network: Network, program: list[str]) -> int:
    """`program` on every node, its output prefixed with the node; the worst exit status. Runs inside a world."""
    with NetnsBackend(network) as backend:
        proven = verify.verify(backend, network)
        worst = max(abs(link["ratio"] - 1) for link in proven["links"])
        print(f"testbed: links proven, goodput within {worst:.2%} of the expected", file=sys.stderr)
        processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for node in network.nodes:
                environment = {**os.environ, "PYTHONUNBUFFERED": "1", **backend.environment(node)}
                processes[node.name] = backend.popen(
                    node,
                    program,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            _relay(processes)
            return max(_status(process.wait()) for process in processes.values())
        except KeyboardInterrupt:
            _interrupt(processes)
            raise


def _status(code: int) -> int:
    """As a shell says it: 128 + n for signal n."""
    return 128 - code if code < 0 else code


def _relay(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Copy whole lines to standard output, prefixed, until every program has closed its own."""
    rest = dict.fromkeys(processes, b"")
    with selectors.DefaultSelector() as selector:
        for name, process in processes.items():
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ, name)
        while selector.get_map():
            for key, _ in selector.select():
                chunk = os.read(key.fd, 1 << 16)
                *lines, rest[key.data] = (rest[key.data] + chunk).split(b"\n")
                if not chunk:
                    selector.unregister(key.fileobj)
                    lines = [rest[key.data]] if rest[key.data] else []
                for line in lines:
                    sys.stdout.buffer.write(f"{key.data}: ".encode() + line + b"\n")
                sys.stdout.buffer.flush()


def _interrupt(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Pass the interrupt on, show what the programs still say, and end those that do not stop."""
    for process in processes.values():
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    impatience = threading.Timer(_STOP_SECONDS, lambda: [process.kill() for process in processes.values()])
    impatience.start()
    _relay({name: process for name, process in processes.items() if process.stdout and not process.stdout.closed})
    impatience.cancel()
