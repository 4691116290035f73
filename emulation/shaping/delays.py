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
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from emulation.errors import CapabilityError, EmulationError, LinkError
from emulation.kernel.commands import At, ToolBatch, iptables, run_all
from emulation.kernel.process_tag import mark
from emulation.kernel.syscalls import at
from emulation.shaping.delay_line import COUNTERS, SLOT
from emulation.shaping.rules import RelayRate, Rule, rule_lines
from emulation.shaping.waiting import Held, Orders, QueueFacts, RateFacts

__all__ = ["DelayCounter", "DelayLine", "lost_by_queues"]

_ROOT = Path(__file__).resolve().parents[2]
_ANSWER_SECONDS = 10.0
_SILENCE_SECONDS = 3.0


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


def _held(settings: QueueFacts | RateFacts) -> str:
    what = f"queue {settings['queue']}" if "queue" in settings else f"rate {settings['name']}"
    return f"{what}: {json.dumps(settings, sort_keys=True)}"


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
        self.rates: list[RelayRate] = []
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

    def apply(self, rules: list[Rule], rates: Sequence[RelayRate] = (), at_ns: int | None = None) -> None:
        """Make packets wait as `rules` say, and for the rates that these name, from now on, or from a time of
        CLOCK_MONOTONIC; those that wait for a delay keep their time."""
        told: Orders = {}
        if news := [rate.settings() for rate in rates if rate not in self.rates]:
            told["rates"] = news
        if rules and (rules != self.rules or self._process is None):
            told["lines"] = [rule.settings() for rule in rules]
        if told:
            if at_ns is not None:
                told["at_ns"] = at_ns
            self.start()
            holds = self._tell(told)["holds"]
            if missing := [each["name"] for each in news if each not in holds]:
                raise LinkError(f"the delay line's relay does not hold the rate of {', '.join(missing)}.")
        if rule_lines(rules, self.nodes) != rule_lines(self.rules, self.nodes):
            run_all([self.batch(rules)], self.at)
        self.rules, self.rates = rules, list(rates)

    def lines(self) -> list[str]:
        """What `read_rules` should find: the kernel's rules, and what the relay holds for each queue and rate."""
        held = [each.settings() for each in (*self.rules, *self.rates)]
        return [*self._kernel_lines(self.rules), *map(_held, held)]

    def _kernel_lines(self, rules: list[Rule]) -> list[str]:
        return rule_lines(rules, self.nodes)

    def batch(self, rules: list[Rule]) -> ToolBatch:
        """The command that puts `rules` in place of those before."""
        return ToolBatch(tool="iptables", netns=self.netns, lines=tuple(rule_lines(rules, self.nodes)))

    def read_rules(self) -> list[str]:
        """The rules that the kernel has, and what the relay holds for the queues in use."""
        used, names = {rule.queue for rule in self.rules}, {rate.name for rate in self.rates}
        told = self._tell({"read": True})["holds"] if used else []
        holds = [each for each in told if each.get("queue") in used]
        rates = [each for each in told if each.get("name") in names]
        return [*self._read_kernel(), *map(_held, [*holds, *rates])]

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
        told: Orders = {"netns": self.netns, "statistics": self.statistics_path, "seed": self.seed}
        self.priority = self._tell(told)["priority"]

    def _tell(self, message: Orders) -> Held:
        """Give the relay one command, and its answer; a player's thread may ask at the same time."""
        with self._lock:
            self._queues |= {each["queue"] for each in message.get("lines", ())}
            return self._ask(message)

    def _ask(self, message: Orders) -> Held:
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
            status = self._process.wait()
            if self.priority is not None or status < 0:  # it has worked before, or was killed
                self.check()
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
