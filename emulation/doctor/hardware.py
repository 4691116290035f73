"""What a machine has, looked up and never changed: processors, memory, disk, accelerators, container engine."""

import os
import shutil
from pathlib import Path

from emulation.doctor.capability import Capability
from emulation.errors import CapabilityError
from emulation.nodes.engine import engine

__all__ = ["Steal", "congestion_control", "cores", "disk", "docker", "gpu", "memory", "pressure", "waiting"]

_ENOUGH_GIB = 4
_ENOUGH_DISK_GIB = 1
_MUCH_STEAL = 0.05
_MUCH_PRESSURE = 50.0
"""Per cent of the last ten seconds, before anything of ours runs."""
_TICKS = 50
"""Of processor time; over fewer a share says nothing."""


def congestion_control() -> Capability:
    """What TCP may be told to use."""
    names = _text("/proc/sys/net/ipv4/tcp_available_congestion_control").split()
    remedy = "" if "reno" in names else "mount /proc/sys"
    detail = ", ".join(names) or "unknown"
    return Capability(name="congestion control", ok="reno" in names, detail=detail, remedy=remedy, needed=True)


def cores() -> Capability:
    """Processors that we may use."""
    count = len(os.sched_getaffinity(0))
    remedy = "" if count > 1 else "two or more, or nodes and links disturb each other"
    return Capability(name="cores", ok=count > 1, detail=f"{count}", remedy=remedy)


class Steal:
    """How much of this machine's processor time other guests of its host take, from now on and since it started."""

    def __init__(self) -> None:
        self._before = self._ticks()

    @staticmethod
    def _ticks() -> tuple[int, int]:
        """Stolen, and all but what guests of our own had (proc(5), stat)."""
        fields = [int(field) for field in _text("/proc/stat").partition("\n")[0].split()[1:9]]
        return (fields[7], sum(fields)) if len(fields) == 8 else (0, 0)

    def capability(self) -> Capability:
        """What was found; more than 5 % makes times doubtful."""
        stolen, total = self._ticks()
        shares = []
        since = (stolen - self._before[0], total - self._before[1])
        if since[1] >= _TICKS:
            shares.append((since[0] / since[1], "now"))
        if total:
            shares.append((stolen / total, "since it started"))
        ok = bool(shares) and shares[0][0] <= _MUCH_STEAL
        detail = ", ".join(f"{100 * share:.1f} % {when}" for share, when in shares) or "unknown"
        remedy = "" if ok else "a quieter host: stolen time makes links and steps look slow"
        return Capability(name="stolen time", ok=ok, detail=detail, remedy=remedy)


def pressure() -> Capability:
    """Pressure stall information, by which starved steps are found."""
    name, words = "pressure (PSI)", _text("/proc/pressure/cpu").split()
    shares = dict(word.split("=") for word in words[1:4] if "=" in word)
    if "avg10" not in shares:
        return Capability(name=name, ok=False, detail="not there", remedy="boot with psi=1 to have starved steps found")
    detail = f"some task waited for a core {shares['avg10']} % of the last 10 s, {shares.get('avg300')} % of 5 min"
    ok = float(shares["avg10"]) <= _MUCH_PRESSURE
    remedy = "" if ok else "end what else is running: steps would be marked as suspect, or be invalid"
    return Capability(name=name, ok=ok, detail=detail, remedy=remedy)


def waiting() -> Capability:
    """Each process's own waiting time."""
    name, fields = "schedstat", _text("/proc/self/schedstat").split()
    if len(fields) == 3 and int(fields[0]):
        return Capability(name=name, ok=True, detail="tells how long each process waited for a core")
    detail = "not there" if not fields else "there, but counts nothing"
    return Capability(name=name, ok=False, detail=detail, remedy="use a kernel with CONFIG_SCHED_INFO")


def memory() -> Capability:
    """What is free of it."""
    lines = (line.split() for line in _text("/proc/meminfo").splitlines())
    gib = next((int(words[1]) / 2**20 for words in lines if words[0] == "MemAvailable:"), 0.0)
    ok = gib >= _ENOUGH_GIB
    remedy = "" if ok else f"{_ENOUGH_GIB} GiB or more"
    return Capability(name="memory", ok=ok, detail=f"{gib:.1f} GiB available", remedy=remedy)


def disk(folder: Path) -> Capability:
    """What is free where results would go."""
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    gib = shutil.disk_usage(existing).free / 2**30
    ok, remedy = gib >= _ENOUGH_DISK_GIB, ""
    if not ok:
        remedy = f"{_ENOUGH_DISK_GIB} GiB or more"
    if not os.access(existing, os.W_OK | os.X_OK):
        ok, remedy = False, "go to a folder that you may write to"
    return Capability(name=f"disk for {folder}/", ok=ok, detail=f"{gib:.1f} GiB free", remedy=remedy)


def gpu() -> Capability:
    """An accelerator of the one kind that is looked for; whether torch can use it, torch finds out."""
    devices = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    name, remedy = "GPU", "none is needed: models are small; training takes the processor"
    if devices:
        return Capability(name=name, ok=True, detail=f"{len(devices)} in /dev; torch says whether it can use CUDA")
    if shutil.which("nvidia-smi"):
        return Capability(name=name, ok=False, detail="nvidia-smi is installed, no device in /dev", remedy=remedy)
    return Capability(name=name, ok=False, detail="none found", remedy=remedy)


def docker() -> Capability:
    """Whether there is an engine that a run could use; nothing is started."""
    try:
        engine().close()
    except CapabilityError as error:
        return Capability(
            name="docker engine", ok=False, detail=f"{error}".rstrip("."), remedy="only --backend docker needs one"
        )
    return Capability(name="docker engine", ok=True, detail="engine answers")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
