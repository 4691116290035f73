"""What this machine can do, found out by doing it in a throw-away world, and what to change where it
cannot."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from emulation.commands import tool_path
from emulation.errors import CapabilityError, UsageError
from emulation.world import REMEDY, run_in_world

__all__ = ["Capability", "has_netem", "probe", "require_tools"]

TOOLS = ("ip", "tc", "bridge", "nsenter")
INSTALL = "sudo apt-get install iproute2 util-linux"
_KERNEL = "use a kernel with {} (sudo modprobe {}; on Ubuntu the package linux-modules-extra-$(uname -r))"
_LINK = "link add p0 type veth peer name p1"


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One thing that was tried."""

    name: str
    ok: bool
    detail: str
    """What was found."""
    remedy: str
    """What to change; empty where nothing needs to."""
    needed: bool = True
    """Whether the testbed needs it; otherwise it is information."""


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """Commands to try in a world of their own."""

    name: str
    commands: tuple[tuple[str, str], ...]
    module: str
    needed: bool = True


_TRIALS = (
    _Trial(
        name="bridge and veth",
        commands=(("ip", "link add b0 type bridge"), ("ip", _LINK), ("ip", "link set p0 master b0 up")),
        module="bridge veth",
    ),
    _Trial(
        name="tbf",
        commands=(("ip", _LINK), ("tc", "qdisc add dev p0 root tbf rate 1mbit burst 8000b limit 60000b")),
        module="sch_tbf",
    ),
    _Trial(
        name="htb with u32",
        commands=(
            ("ip", _LINK),
            ("tc", "qdisc add dev p0 root handle 1: htb default fff"),
            ("tc", "class add dev p0 parent 1: classid 1:1 htb rate 1mbit"),
            ("tc", "filter add dev p0 parent 1: protocol ip u32 match ip dst 10.77.0.1/32 flowid 1:1"),
        ),
        module="sch_htb cls_u32",
    ),
    _Trial(
        name="netem",
        commands=(("ip", _LINK), ("tc", "qdisc add dev p0 root netem delay 1ms")),
        module="sch_netem",
        needed=False,
    ),
)


def require_tools() -> None:
    """Raise CapabilityError unless the tools that build networks are installed."""
    missing = [tool for tool in TOOLS if tool_path(tool) is None]
    if missing:
        raise CapabilityError(f"{', '.join(missing)} not found on this machine: type '{INSTALL}'.")


def has_netem() -> bool:
    """Whether this kernel has netem, by trying it."""
    trial = next(each for each in _TRIALS if each.name == "netem")
    return _try_in_world(trial).ok


def probe() -> list[Capability]:
    """Everything, the needed first. Call it before any thread starts; it changes nothing on the host."""
    found = [_tools(), _world()]
    if all(each.ok for each in found):
        found += [_try_in_world(trial) for trial in _TRIALS]
        found.append(_nfqueue())
    return [*found, _congestion_control(), _pressure(), _cores(), _memory(), _docker()]


def _in_world(body: Callable[[], str]) -> str:
    """What `body` returns when it is called in a throw-away world."""
    read, write = os.pipe()
    try:
        status = run_in_world(lambda: 0 if os.write(write, body().encode()) >= 0 else 1)
    finally:
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
    return said if status == 0 else f"the trial ended with status {status}"


def _try_in_world(trial: _Trial) -> Capability:
    """Run a trial's commands until one fails."""

    def body() -> str:
        for tool, line in trial.commands:
            argv = [tool_path(tool) or tool, *line.split()]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return f"'{tool} {line}': {done.stderr.strip()}"[:2000]
        return ""

    said = _in_world(body)
    remedy = _KERNEL.format(trial.module.replace(" ", ", "), trial.module) if said else ""
    return Capability(name=trial.name, ok=not said, detail=said or "works", remedy=remedy, needed=trial.needed)


def _tools() -> Capability:
    missing = [tool for tool in TOOLS if tool_path(tool) is None]
    if missing:
        return Capability(name="ip, tc, nsenter", ok=False, detail=f"missing: {', '.join(missing)}", remedy=INSTALL)
    version = subprocess.run([str(tool_path("ip")), "-V"], capture_output=True, text=True, check=False)
    listed = subprocess.run([str(tool_path("ip")), "-j", "link"], capture_output=True, text=True, check=False)
    try:
        json.loads(listed.stdout)
    except ValueError:
        detail = f"{version.stdout.strip()} prints no JSON"
        return Capability(name="ip, tc, nsenter", ok=False, detail=detail, remedy=f"newer iproute2: {INSTALL}")
    return Capability(name="ip, tc, nsenter", ok=True, detail=version.stdout.strip(), remedy="")


def _world() -> Capability:
    try:
        said = _in_world(lambda: "")
    except CapabilityError as error:
        return Capability(name="private world", ok=False, detail=str(error), remedy=REMEDY)
    except UsageError as error:
        return Capability(name="private world", ok=False, detail=str(error), remedy="ask before any thread starts")
    kind = "as root" if os.getuid() == 0 else "without root, in a user namespace"
    return Capability(name="private world", ok=not said, detail=said or f"works, {kind}", remedy="")


def _nfqueue() -> Capability:
    def body() -> str:
        try:
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).close()
        except OSError as error:
            return f"no netfilter netlink: {error.strerror}"
        return "" if Path("/proc/net/netfilter/nfnetlink_queue").exists() else "nfnetlink_queue is not loaded"

    said = _in_world(body)
    return Capability(name="nfqueue", ok=not said, detail=said or "works", remedy="", needed=False)


def _congestion_control() -> Capability:
    path = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
    names = path.read_text(encoding="ascii").split() if path.exists() else []
    remedy = "" if "reno" in names else "mount /proc/sys"
    return Capability(name="congestion control", ok="reno" in names, detail=" ".join(names), remedy=remedy)


def _pressure() -> Capability:
    try:
        detail = Path("/proc/pressure/cpu").read_text(encoding="ascii").splitlines()[0]
        return Capability(name="pressure (PSI)", ok=True, detail=detail, remedy="", needed=False)
    except OSError as error:
        remedy = "boot with psi=1 to have starved steps marked"
        return Capability(name="pressure (PSI)", ok=False, detail=str(error), remedy=remedy, needed=False)


def _cores() -> Capability:
    cores = len(os.sched_getaffinity(0))
    remedy = "" if cores > 1 else "two cores or more, or ranks and links disturb each other"
    return Capability(name="cores", ok=cores > 1, detail=str(cores), remedy=remedy, needed=False)


def _memory() -> Capability:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
    gib = int(fields["MemAvailable"].split()[0]) / 2**20
    remedy = "" if gib >= 4 else "4 GiB or more"
    return Capability(name="memory", ok=gib >= 4, detail=f"{gib:.1f} GiB available", remedy=remedy, needed=False)


def _docker() -> Capability:
    """Whether an engine answers; nothing is started."""
    path = "/var/run/docker.sock"
    detail = "no docker client" if shutil.which("docker") is None else f"client found, no engine at {path}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(2.0)
            sock.connect(path)
            sock.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            ok = b"200 OK" in sock.recv(4096)
            detail = "engine answers" if ok else "engine does not answer"
    except OSError:
        ok = False
    return Capability(name="docker engine", ok=ok, detail=detail, remedy="", needed=False)


if __name__ == "__main__":
    print(json.dumps([asdict(each) for each in probe()], indent=2))
