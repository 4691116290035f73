"""The delay line of a network: which packets wait in which queue, the relay's life, and what it has counted.

rules    in the switch's mangle FORWARD: packets of these paths go to that queue
relay    one process (`emulation.shaping.delay_line`) which lets them go
counters in a file in the world's /dev/shm, read by whoever asks
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emulation.commands import At, Batch, iptables, run_all
from emulation.errors import CapabilityError, EmulationError, LinkError
from emulation.mark import mark
from emulation.network import Link, Network
from emulation.shaping.delay_line import COUNTERS, SLOT
from emulation.shaping.netem import Netem
from emulation.syscalls import at

__all__ = ["DelayCounter", "DelayLine", "Rule", "delay_rules", "lost_by_queues"]

_ROOT = Path(__file__).resolve().parents[2]
_ANSWER_SECONDS = 10.0
_SILENCE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One queue, and the paths whose packets wait in it."""

    queue: int
    pairs: tuple[tuple[int, int], ...]
    """(from, to), node indexes."""
    link: Link
    """What their packets meet."""

    def settings(self) -> dict[str, Any]:
        """What the relay is told."""
        bursts = self.link.loss and self.link.loss_burst is not None
        enter, leave = Netem.of(self.link, 1).gilbert_elliott() if bursts else (0.0, 1.0)
        return {
            "queue": self.queue,
            "delay_us": self.link.delay_us,
            "jitter_us": self.link.jitter_us,
            "distribution": self.link.distribution,
            "loss": self.link.loss,
            "enter": enter,
            "leave": leave,
            "reorder": self.link.reorder,
        }


def delay_rules(network: Network) -> list[Rule]:
    """A rule per kind of path that delays or loses; one of its own for each that loses in runs."""
    kinds: dict[tuple[Any, ...], tuple[Link, list[tuple[int, int]]]] = {}
    for source, target in network.pairs:
        link = network.path(source, target)
        own: tuple[int, ...] = ()
        if link.loss_burst is not None:  # one path's losses in a row must not be shared out among several
            own = (source.index,) if network.accounting == "nic" else (source.index, target.index)
        what = (link.delay_us, link.jitter_us, link.distribution, link.loss, link.loss_burst, link.reorder, *own)
        kinds.setdefault(what, (link, []))[1].append((source.index, target.index))
    return [
        Rule(queue=queue, pairs=tuple(pairs), link=link)
        for queue, (link, pairs) in enumerate(kinds.values())
        if link.impaired
    ]


def rule_lines(rules: list[Rule], nodes: int) -> list[str]:
    """What iptables-save prints of them: as few as tell the paths apart, for each packet walks through them."""
    pairs = {pair: rule.queue for rule in rules for pair in rule.pairs}
    if len(pairs) == nodes * (nodes - 1) and len(rules) == 1:
        return [f"-A FORWARD -j NFQUEUE --queue-num {rules[0].queue}"]
    by_source: dict[int, dict[int, int]] = defaultdict(dict)
    for (source, target), queue in pairs.items():
        by_source[source][target] = queue
    first, behind = [], []
    for source, queues in sorted(by_source.items()):
        if len(queues) == nodes - 1 and len(set(queues.values())) == 1:
            first.append(f"-A FORWARD -i sw{source} -j NFQUEUE --queue-num {next(iter(queues.values()))}")
        else:
            first.append(f"-A FORWARD -i sw{source} -j from{source:03d}")
            behind += [
                f"-A from{source:03d} -o sw{target} -j NFQUEUE --queue-num {queue}"
                for target, queue in sorted(queues.items())
            ]
    chains = [
        f"-N from{source:03d}"
        for source in sorted(by_source)
        if any(f"-A from{source:03d} " in line for line in behind)
    ]
    return [*chains, *first, *behind]


def _spawn(arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {"PYTHONPATH": str(_ROOT), "PATH": os.environ.get("PATH", ""), **mark()}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def lost_by_queues(queues: list[int]) -> int:
    """Packets that these queues of the present namespace have lost."""
    with open("/proc/thread-self/net/netfilter/nfnetlink_queue", encoding="ascii") as file:
        found = [fields for fields in map(str.split, file) if int(fields[0]) in queues]
    return sum(int(fields[5]) + int(fields[6]) for fields in found)


def _held(settings: dict[str, Any]) -> str:
    return f"queue {settings['queue']}: {json.dumps(settings, sort_keys=True)}"


class DelayLine:
    """The relay of one network, and its rules. Nothing runs until a path delays or loses."""

    def __init__(
        self,
        netns: str | None,
        nodes: int,
        *,
        seed: int = 0,
        at: At = at,
        spawn: Callable[[list[str]], subprocess.Popen[bytes]] | None = None,
    ) -> None:
        self.netns = netns
        """The switch's; None: the present one."""
        self.at = at
        self.spawn = spawn or _spawn
        """Starts Python with these arguments where it can reach that namespace."""
        self.nodes = nodes
        self.seed = seed
        self.rules: list[Rule] = []
        self.priority: str | None = None
        """What the relay got of the processor."""
        self.statistics_path: str | None = None
        """For `DelayCounter`."""
        self._process: subprocess.Popen[bytes] | None = None
        self._queues: set[int] = set()
        """All that it has ever had."""
        self._lock = threading.Lock()

    def prepare(self, folder: str = "/dev/shm") -> None:
        """Make the file of counters, so that whoever wants to read them knows where, also before there is a relay."""
        if self.statistics_path is None:
            with tempfile.NamedTemporaryFile(dir=folder, prefix="delay_line.", delete=False) as file:
                file.write(bytes(SLOT.size))
                self.statistics_path = file.name

    def apply(self, rules: list[Rule]) -> None:
        """Make packets wait as `rules` say, from now on; those that wait keep their time."""
        if rules:
            self.start()
            self._tell({"lines": [rule.settings() for rule in rules]})
        if rule_lines(rules, self.nodes) != rule_lines(self.rules, self.nodes):
            run_all([self.batch(rules)], self.at)
        self.rules = rules

    def lines(self) -> list[str]:
        """What `read_rules` should find: the kernel's rules, and what the relay holds for each queue."""
        return [*self._kernel_lines(self.rules), *(_held(rule.settings()) for rule in self.rules)]

    def _kernel_lines(self, rules: list[Rule]) -> list[str]:
        return rule_lines(rules, self.nodes)

    def batch(self, rules: list[Rule]) -> Batch:
        """The command that puts `rules` in place of those before."""
        return Batch(tool="iptables", netns=self.netns, lines=tuple(rule_lines(rules, self.nodes)))

    def read_rules(self) -> list[str]:
        """The rules that the kernel has, and what the relay holds for the queues in use."""
        used = {rule.queue for rule in self.rules}
        holds = self._tell({"lines": []})["holds"] if used else []
        return [*self._read_kernel(), *(_held(each) for each in holds if each["queue"] in used)]

    def _read_kernel(self) -> list[str]:
        said = self.at(self.netns, iptables, self.netns, "", "-w", "-t", "mangle", "-S")
        return [line.strip() for line in said.splitlines() if not line.startswith("-P")]

    # -- the relay's life

    def start(self) -> None:
        """Start the relay, unless there is one."""
        if self._process is not None:
            return
        self.prepare()
        self._process = self.spawn(["-P", "-S", "-m", "emulation.shaping.delay_line"])
        told = {"netns": self.netns, "statistics": self.statistics_path, "seed": self.seed}
        self.priority = self._tell(told)["priority"]

    def _tell(self, message: dict[str, Any]) -> dict[str, Any]:
        """Give the relay one command, and its answer; a player's thread may ask at the same time."""
        with self._lock:
            self._queues |= {each["queue"] for each in message.get("lines", ())}
            return self._ask(message)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.check()
        if not select.select([self._process.stdout], [], [], _ANSWER_SECONDS)[0]:
            raise EmulationError("the delay line's relay does not answer.")
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise CapabilityError(
                "the delay line's relay could not do as told (its reason is above): this kernel has no "
                "nfnetlink_queue, or refuses it; 'testbed doctor' says what is missing."
            )
        return json.loads(line)

    @property
    def pid(self) -> int | None:
        """The process that was started for the relay, if one was."""
        return self._process.pid if self._process else None

    def check(self) -> None:
        """Raise LinkError unless the relay lives, goes round, and its queues have lost nothing of their own."""
        if self._process is None:
            return
        status = self._process.poll()
        if status is not None:
            raise LinkError(
                f"the delay line's relay ended (status {status}): packets on delayed links go nowhere since. "
                "Nothing measured after that counts; run again."
            )
        with DelayCounter(self.statistics_path) as counter:
            beat = counter.read()["beats_ns"]
        silent = (time.monotonic_ns() - beat) / 1e9 if beat else 0.0
        if silent > _SILENCE_SECONDS:
            raise LinkError(f"the delay line's relay has been silent for {silent:.1f} s: it is stopped or starved.")
        lost = self.overflows()
        if lost:
            raise LinkError(
                f"the delay line's queues overflowed and lost {lost} packets that no link was asked to lose; "
                "use a lower rate, a shorter delay, or fewer nodes."
            )

    def overflows(self) -> int:
        """Packets that the kernel dropped because the relay did not keep up."""
        return self.at(self.netns, lost_by_queues, sorted(self._queues))

    def close(self) -> None:
        """End the relay; packets that wait are lost. A second time does nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # what it was told after its end
                        pipe.close()
            self._process = None
        if self.statistics_path is not None:
            os.unlink(self.statistics_path)
            self.statistics_path = None


class DelayCounter:
    """The relay's counters, from any process of the world. `path` None: there is no delay line, and all are 0."""

    def __init__(self, path: str | None) -> None:
        self._file = open(path, "rb") if path else None  # noqa: SIM115 (closed by close)

    def read(self) -> dict[str, int]:
        """The counters since the relay started, by the names in `COUNTERS`."""
        data = os.pread(self._file.fileno(), SLOT.size, 0) if self._file else bytes(SLOT.size)
        return dict(zip(COUNTERS, SLOT.unpack(data), strict=True))

    def close(self) -> None:
        if self._file:
            self._file.close()

    def __enter__(self) -> "DelayCounter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
