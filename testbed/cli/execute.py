"""Any command on every node of an emulated network, and `testbed verify`."""

import json
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from emulation.errors import EmulationError
from emulation.kernel.facts import NetworkFacts
from emulation.measure import verify
from emulation.measure.measurement import Proof
from emulation.measure.traffic import MovedFacts, TrafficCounter
from emulation.nodes.base import Backend
from emulation.player import Player
from emulation.spec.events import EventFacts, Schedule
from emulation.spec.network import Network, Node
from emulation.spec.units import format_percent, format_size, parse_size
from testbed.cli.terminal import line_end, shell_on
from testbed.errors import RunFailed, UsageError

__all__ = ["ExecRequest", "run_everywhere", "verify_links"]

_STOP_SECONDS = 5.0
_ROUND_SECONDS, _REAP_SECONDS = 0.2, 0.02
_HELD_SECONDS = 2.0
"""A program has ended for so long, and its output has not: that is said."""
_LONGEST_LINE = 1 << 16
_END = re.compile(rb"\r?\n|\r(?=[^\n])")
"""Of what can be shown: a line, or what a progress bar has drawn before it begins anew."""


class ExecRecord(MovedFacts):
    """What `--record` writes."""

    schema_version: int
    command: Sequence[str]
    network: NetworkFacts
    wall_seconds: float
    cpu_seconds: dict[str, float]
    """Of the programs, by node."""
    exit_status: dict[str, int]
    """By node."""
    events: Sequence[EventFacts]
    """Of the schedule."""


# -- verify


def verify_links(nodes: Backend, tolerance: verify.Tolerance, *, as_json: bool) -> int:
    """Build, measure, print; 1 if a link is not what was asked. Runs inside a world."""
    network = nodes.network
    with nodes as backend:
        measured = verify.prove(backend, network, tolerance, streams=(1, *verify.MANY_STREAMS))
        readback = backend.check_readback()
        described = backend.describe()
    if as_json:
        found = {**asdict(measured), "schema_version": measured.SCHEMA, "network": described, "readback": readback}
        print(json.dumps(found))
    else:
        _print_measured(network, measured, tolerance)
    return 0 if measured.ok else 1


def _print_measured(network: Network, measured: Proof, tolerance: verify.Tolerance) -> None:
    console = Console()
    counts = "layer 2 and above" if network.framing == "layer2" else "all that an Ethernet wire carries"
    table = Table(title=f"goodput of every link, Mbit/s (rates count {counts})")
    for name in ("link", "direction", "phase", "expected", "measured", "ratio", "first moments"):
        table.add_column(name, justify="left" if name in ("link", "direction", "phase") else "right")
    for link in measured.links:
        table.add_row(
            f"{link.node} → {link.peer}" if link.peer else link.node,
            link.direction,
            link.phase,
            f"{link.expected_bps / 1e6:.3f}" if link.expected_bps and link.binding else "≤ rate",
            f"{link.arrived_bps / 1e6:.3f}",
            f"{link.ratio:.4f}" if link.ratio is not None and link.binding else "",
            f"{link.first_ratio:.3f}" if link.first_ratio is not None else "",
        )
    console.print(table)
    trips = Table(title="round trips on idle links, ms")
    for name in ("from", "to", "asked", "median", "p99", "lost"):
        trips.add_column(name, justify="left" if name in ("from", "to") else "right")
    for ping in measured.round_trips:
        times = [f"{each / 1000:.2f}" if each is not None else "-" for each in (ping.median_us, ping.p99_us)]
        trips.add_row(ping.source, ping.target, f"{ping.expected_us / 1000:g}", *times, f"{ping.lost}")
    console.print(trips)
    for loss in measured.losses:
        console.print(
            f"{loss.source} → {loss.target}: {loss.loss:.3%} of {loss.sent} datagrams lost, "
            f"asked {loss.asked:.3%} (chance alone: {loss.lowest:.3%} to {loss.highest:.3%})"
        )
    for problem in measured.problems:
        console.print(f"OUT OF TOLERANCE: {problem}", style="bold red", markup=False)
    if not measured.problems:
        allowed = format_percent(tolerance.rate)
        console.print(f"every link is what was asked ({allowed} allowed): {verify.proof(network, measured)}")


# -- exec


class ExecRequest:
    """What `testbed exec` was asked to do."""

    def __init__(
        self,
        program: list[str],
        *,
        schedule: Schedule | None = None,
        shell: str | None = None,
        expect_bytes: str | None = None,
        record: str | None = None,
    ) -> None:
        self.program = program
        self.schedule = schedule
        self.shell = shell
        """A node on which the user gets a shell."""
        self.expect_bytes = None if expect_bytes is None else parse_size(expect_bytes)
        """Each node must have sent as many."""
        self.record = None if record is None else Path(record)
        if self.record is not None and self.record.exists():
            raise UsageError(f"{self.record} exists already; name another file for --record")
        if self.record is not None and not self.record.parent.is_dir():
            raise UsageError(f"there is no folder {self.record.parent}; make it, or name another file for --record")

    def check(self, network: Network) -> None:
        """Raise `UsageError` where it does not fit the network."""
        names = [node.name for node in network.nodes]
        if self.shell is not None and self.shell not in names:
            raise UsageError(f"there is no node {self.shell!r}; this network's nodes are {', '.join(names)}")
        if self.schedule is not None:
            self.schedule.check(network)
            if not self.program and "restart" in self.schedule.kinds():
                raise UsageError("the schedule restarts a command, and none was given; type it behind '--'")


class _Programs:
    """The user's command on every node, its output prefixed, started anew when a schedule says so."""

    def __init__(self, backend: Backend, program: list[str]) -> None:
        self.backend = backend
        self.program = program
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.statuses: dict[str, int] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._selector = selectors.DefaultSelector()
        self._rest: dict[int, bytes] = {}
        self._silent: list[tuple[str, subprocess.Popen[bytes]]] = []
        """Their output has ended; they may not have."""
        self._ended: dict[int, float] = {}
        """When those were first seen to have ended whose output has not, by process; infinite once that is said."""
        self._lock = threading.Lock()

    def start(self, node: Node) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self.backend.environment(node)}
        process = self.backend.popen(
            node,
            self.program,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        with self._lock:
            self.running[node.name] = process
            self._rest[process.stdout.fileno()] = b""
            self._selector.register(process.stdout, selectors.EVENT_READ, (node.name, process))

    def restart(self, node: Node) -> None:
        """A node's program anew; an old one that still runs is ended first."""
        if node.name in self.running:
            self.backend.kill(node)
        self.start(node)

    def relay(self, until: Player | None = None, pause: threading.Event | None = None) -> None:
        """Copy whole lines to standard output, prefixed, until every program has ended and none will come.

        With `pause`: until that is set, and it may be called again then. Player and links are watched meanwhile.
        """
        while pause is None or not pause.is_set():
            more = until is not None and not until.finished and "restart" in until.schedule.kinds()
            # asked in this order: the last event may start one
            if pause is None and not more and not self._selector.get_map() and not self._silent:
                return
            for key, _ in self._selector.select(_ROUND_SECONDS if not self._silent else _REAP_SECONDS):
                name, process = key.data
                chunk = os.read(key.fd, 1 << 16)
                self._rest[key.fd] = self._show(name, self._rest[key.fd] + chunk, whole=not chunk)
                if not chunk:
                    with self._lock:
                        self._selector.unregister(key.fileobj)
                    process.stdout.close()
                    self._silent.append((name, process))
            self._tell_held()
            self._silent = [each for each in self._silent if not self._reap(*each)]
            if until is not None:
                until.check()
            self.backend.check_alive()

    @staticmethod
    def _show(name: str, text: bytes, *, whole: bool) -> bytes:
        """Write the lines of a node's output, each with its name; what is left of it. `whole`: nothing will follow."""
        end, shown = line_end(1), 0
        for at in _END.finditer(text):
            line = text[shown : at.start()]
            sys.stdout.buffer.write(f"{name}: ".encode() + line + (b"\r" if at[0] == b"\r" else end))
            shown = at.end()
        left = text[shown:]
        if left and (whole or len(left) > _LONGEST_LINE):
            sys.stdout.buffer.write(f"{name}: ".encode() + left + end)
            left = b""
        sys.stdout.buffer.flush()
        return left

    def _tell_held(self) -> None:
        """Say once of a program that it has ended, and that something it started is waited for."""
        for key in list(self._selector.get_map().values()):
            name, process = key.data
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            now = time.monotonic()
            if now - self._ended.setdefault(process.pid, now) > _HELD_SECONDS:
                self._ended[process.pid] = math.inf
                _say(
                    f"{name}: the program has ended, and a process that it started holds its output: that is waited for"
                )

    def _reap(self, name: str, process: subprocess.Popen[bytes]) -> bool:
        """Whether it has ended. Its exit status, unless another was started in its place, and processor time with its
        own children's."""
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if not pid:
            return False
        process.returncode = os.waitstatus_to_exitcode(status)
        if self.running[name] is process:
            self.statuses[name] = _as_shell(process.returncode)
        if self.backend.starts_programs:
            self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + usage.ru_utime + usage.ru_stime
        return True

    def close(self) -> None:
        """Hear no more of them."""
        for key in list(self._selector.get_map().values()):
            key.data[1].stdout.close()
        self._selector.close()

    def interrupt(self) -> None:
        """Pass it on to all processes, as a terminal would; show what they still say; end those that do not stop."""
        self._signal(signal.SIGINT)
        self._signal(signal.SIGCONT)  # the frozen ones hear it too
        impatience = threading.Timer(_STOP_SECONDS, self._signal, [signal.SIGKILL])
        impatience.start()
        self.relay()
        impatience.cancel()

    def _signal(self, number: int) -> None:
        for node in self.backend.network.nodes:
            with suppress(EmulationError):  # its container has ended, and with it what was to hear this
                self.backend.signal(node, number)


def _as_shell(code: int) -> int:
    """An exit status as a shell says it."""
    return 128 - code if code < 0 else code


def run_everywhere(nodes: Backend, errand: ExecRequest) -> int:
    """The program on every node, or a shell on one; the worst exit status. Runs inside a world."""
    network = nodes.network
    with nodes as backend, ExitStack() as stack:
        proven = verify.verify(backend, network)
        _say(f"links proven: {verify.proof(network, proven)}")
        traffic = TrafficCounter(backend)
        stack.callback(traffic.close)
        programs, started = _Programs(backend, errand.program), time.monotonic()
        stack.callback(programs.close)
        player = None
        if errand.schedule is not None:
            player = stack.enter_context(
                Player(backend, errand.schedule, programs=programs, on_event=lambda event: _say(_told(event)))
            )
        try:
            for node in network.nodes if errand.program else ():
                programs.start(node)
            if player is not None:
                player.start()
            if errand.shell is not None:
                node = next(node for node in network.nodes if node.name == errand.shell)
                programs.statuses[f"shell on {node.name}"] = _shell_beside(backend, node, programs, player)
            programs.relay(player)
            if player is not None:
                player.close()  # a change under way would be taken for a wrong link
        except KeyboardInterrupt:
            if player is not None:
                with suppress(EmulationError):
                    player.close()
            programs.interrupt()
            raise
        seconds = time.monotonic() - started
        moved = traffic.read().record()
        backend.check_readback()
    record: ExecRecord = {
        "schema_version": 1,
        "command": errand.program,
        "network": backend.describe(),
        "wall_seconds": round(seconds, 3),
        "cpu_seconds": {name: round(value, 3) for name, value in programs.cpu_seconds.items()},
        "exit_status": programs.statuses,
        "sent_bytes": moved["sent_bytes"],
        "received_bytes": moved["received_bytes"],
        "pairs": moved["pairs"],
        "events": player.events if player else [],
    }
    _print_moved(record, network)
    if errand.record is not None:
        errand.record.write_text(json.dumps(record, indent=2) + "\n")
    _check_expected(errand, record)
    return max(programs.statuses.values(), default=0)


def _shell_beside(backend: Backend, node: Node, programs: _Programs, player: Player | None) -> int:
    """The user's shell until it ends, and meanwhile what the programs say; what must end the run ends the shell."""
    ended, failed = threading.Event(), threading.Event()

    def relay() -> None:
        try:
            programs.relay(player, ended)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(1) as pool:
        relayed = pool.submit(relay)
        try:
            status = _as_shell(shell_on(backend, node, failed))
        finally:
            ended.set()
        relayed.result()
    return status


def _say(text: str) -> None:
    print(f"testbed: {text}", file=sys.stderr, end=line_end(2).decode(), flush=True)


def _told(event: EventFacts) -> str:
    return f"{event['applied_seconds']:.2f} s: {event['what']}"


def _check_expected(errand: ExecRequest, record: ExecRecord) -> None:
    """A program that went past its links has sent too few bytes through them."""
    if errand.expect_bytes is None:
        return
    short = {name: count for name, count in record["sent_bytes"].items() if count < errand.expect_bytes}
    if short:
        shown = ", ".join(f"{name} {count}" for name, count in short.items())
        raise RunFailed(
            f"each node was expected to send at least {format_size(errand.expect_bytes)} over its link, and the links "
            f"counted less: {shown} bytes. The program moved less than you think, or found another way."
        )


def _print_moved(record: ExecRecord, network: Network) -> None:
    console = Console(stderr=True)
    table = Table(title=f"bytes on the links (layer 2), {record['wall_seconds']:.1f} s")
    table.add_column("node")
    names = [node.name for node in network.nodes]
    pairs = {(pair["from"], pair["to"]): pair["bytes"] for pair in record["pairs"]}
    columns = ["sent", "received", "CPU s", *(f"to {name}" for name in names if pairs and len(names) <= 8)]
    for column in columns:
        table.add_column(column, justify="right")
    for name in names:
        cpu = record["cpu_seconds"].get(name)
        cells = [f"{record['sent_bytes'][name]:,}", f"{record['received_bytes'][name]:,}"]
        cells.append("" if cpu is None else f"{cpu:.2f}")
        cells += [f"{pairs.get((name, other), 0):,}" if other != name else "" for other in names][: len(columns) - 3]
        table.add_row(name, *cells)
    console.print(table)
