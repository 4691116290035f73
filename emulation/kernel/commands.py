"""Run `ip`, `tc` and `iptables` in batches, one process for many lines; any line that fails raises."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from emulation.errors import CapabilityError, EmulationError
from emulation.kernel import syscalls
from emulation.kernel.facts import ToolRow

__all__ = ["At", "ToolBatch", "ip_json", "iptables", "run_all", "run_batch", "tool_path", "write_sysctl"]

Tool = Literal["ip", "tc", "sysctl", "iptables"]
At = Callable[..., Any]
"""`at(netns, task, *arguments)` calls a task in a namespace: `emulation.kernel.syscalls.at`, or who asks a helper."""

_UNSUPPORTED = ("Unknown device type", "qdisc kind is unknown", "Operation not supported", "not permitted")


def tool_path(name: str) -> str | None:
    """Where a tool is; an ordinary user's PATH often lacks the sbin folders."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")


@dataclass(frozen=True, kw_only=True)
class ToolBatch:
    """Lines for one tool in one network namespace."""

    tool: Tool
    netns: str | None
    """None: the world's own namespace."""
    lines: tuple[str, ...]
    table: str = "mangle"
    """Of iptables: the lines become the whole of it."""

    def shown(self) -> list[str]:
        """The commands as one would type them inside the world."""
        if self.tool == "sysctl":
            where = f"nsenter --net={syscalls.netns_path(self.netns)} -- " if self.netns else ""
            return [f"{where}sysctl -w {line}" for line in self.lines]
        if self.tool == "iptables":
            return [f"ip netns exec {self.netns} {self.tool} -t {self.table} {line}" for line in ("-F", *self.lines)]
        where = f" -n {self.netns}" if self.netns else ""
        return [f"{self.tool}{where} {line}" for line in self.lines]

    def run(self) -> None:
        """Run every line; the first that fails ends it."""
        if self.tool == "sysctl":
            self._write_sysctls()
            return
        if self.tool == "iptables":
            self._restore_tables()
            return
        argv, text = [tool_path(self.tool) or self.tool, "-batch", "-"], "\n".join(self.lines) + "\n"
        with syscalls.in_netns(self.netns):
            done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
        if done.returncode != 0 or done.stderr.strip():
            said = " / ".join(done.stderr.split("\n")).strip(" /")
            self._fail(said or f"exit status {done.returncode}")

    def _restore_tables(self) -> None:
        """The lines become the whole table, in one step."""
        lines = [line.replace("-N ", ":") + " - [0:0]" if line.startswith("-N ") else line for line in self.lines]
        text = "\n".join((f"*{self.table}", *lines, "COMMIT", ""))
        assert self.netns is not None, "rules are set inside a node's namespace only"
        iptables(self.netns, "-restore", "-w", text=text)

    def _fail(self, said: str) -> None:
        number = said.rpartition("-:")[2].split()[0:1]
        index = int(number[0]) - 1 if number and number[0].isdigit() else -1
        shown = self.shown()
        line = shown[index] if 0 <= index < len(shown) else shown[0]
        if any(sign in said for sign in _UNSUPPORTED):
            raise CapabilityError(f"the kernel refused '{line}': {said}. 'testbed doctor' says what is missing.")
        raise EmulationError(f"'{line}' failed: {said}")

    def _write_sysctls(self) -> None:
        if self.netns is None:
            raise EmulationError("sysctls are set inside a node's namespace only")
        with syscalls.in_netns(self.netns):
            for line in self.lines:
                key, _, value = line.partition("=")
                write_sysctl(key, value.strip('"'))


_flavours: list[str] = ["", "-legacy", "-nft"]
"""Of iptables; the one that works stays alone, for each sees its own rules only."""


def iptables(netns: str | None, suffix: str, *words: str, text: str = "") -> str:
    """What iptables, or with a `suffix` iptables-restore or -save, says inside a namespace; CapabilityError."""
    said = "not installed: type 'sudo apt-get install iptables'"
    for flavour in tuple(_flavours):
        path = tool_path(f"iptables{flavour}{suffix}")
        if path is None:
            continue
        with syscalls.in_netns(netns):
            done = subprocess.run([path, *words], input=text, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            _flavours[:] = [flavour]
            return done.stdout
        said = " / ".join(done.stderr.split("\n")).strip(" /")
    raise CapabilityError(
        f"'iptables{suffix}' failed{f' on {netns}' if netns else ''}: {said}. Delays without netem need it."
    )


def write_sysctl(key: str, value: str) -> None:
    """Make one sysctl of the current network namespace be this; where it is already, it need not be writable."""
    path = "/proc/sys/" + key.replace(".", "/")
    try:
        with open(path, encoding="ascii") as file:
            if _numbers(file.read()) == _numbers(value):
                return
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOENT, errno.EROFS):
            raise CapabilityError(f"the kernel refused 'sysctl -w {key}={value}': {error.strerror}.") from error
        raise EmulationError(f"'sysctl -w {key}={value}' failed: {error.strerror}.") from error


def _numbers(value: str) -> list[str]:
    """Normalise a CPU mask: the kernel pads its comma-separated 32-bit words with zeros, whose number it counts
    out by the processors that there could be."""
    return [word.lstrip("0") or "0" for word in value.replace(",", "").split()]


def run_batch(tool: Tool, netns: str | None, lines: Sequence[str], table: str) -> None:
    """Run a `ToolBatch` of these fields."""
    ToolBatch(tool=tool, netns=netns, lines=tuple(lines), table=table).run()


def run_all(batches: Sequence[ToolBatch], at: At = syscalls.at) -> None:
    """Run batches in order, each where `at` says."""
    for batch in batches:
        at(batch.netns, run_batch, batch.tool, batch.netns, batch.lines, batch.table)


def ip_json(netns: str, *words: str) -> list[ToolRow]:
    """What ip(8) prints as JSON inside a namespace."""
    with syscalls.in_netns(netns):
        done = subprocess.run([tool_path("ip") or "ip", "-j", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EmulationError(f"'ip -n {netns} -j {' '.join(words)}' failed: {done.stderr.strip()}")
    return json.loads(done.stdout or "[]")
