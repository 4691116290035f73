"""What the kernel lets us do, found out by doing it in throw-away worlds, with the same commands as a run."""

import json
import os
import subprocess
from collections.abc import Callable

from emulation.doctor.capability import Capability
from emulation.errors import CapabilityError, EmulationError, UsageError
from emulation.kernel.commands import tool_path, write_sysctl
from emulation.kernel.world import run_in_world
from emulation.measure.probe_client import Probers
from emulation.measure.verify import capacity
from emulation.nodes.netns import NetnsBackend
from emulation.shaping import tc
from emulation.shaping.delays import DelayLine
from emulation.shaping.netem import Netem
from emulation.shaping.rules import Rule
from emulation.spec.network import Accounting, Link, star

__all__ = ["IPTABLES", "attempt", "delays", "faults", "installed", "kernel", "network", "rules", "steering", "world"]

IPTABLES = "sudo apt-get install iptables"
_RATE_BPS = 100_000_000
_IMPAIRED = Link(rate_bps=_RATE_BPS, delay_us=5000)
_CABLE = ("ip", "link add p0 type veth peer name p1")
_PINGS = 20
_SHOWN = 60
_ROUND_TRIP_SLACK_US = 2000
_MODULE = "use a kernel with {0} (sudo modprobe {0}; on Ubuntu the package linux-modules-extra-$(uname -r))"


def attempt(body: Callable[[], str]) -> tuple[bool, str]:
    """Whether `body` went through in a throw-away world, and what it said, or what stopped it.

    What its programs print as errors is not shown; the last line goes with what stopped it.
    """
    read, write = os.pipe()

    def inside() -> int:
        errors = os.memfd_create("errors")
        os.dup2(errors, 2)
        try:
            found: tuple[bool, str] = (True, body())
        except (EmulationError, OSError) as error:
            os.lseek(errors, 0, os.SEEK_SET)
            last = os.read(errors, 1 << 16).decode(errors="replace").strip().rpartition("\n")[2]
            found = (False, f"{error} {last}".strip()[:1000])
        os.write(write, json.dumps(found).encode())
        return 0

    try:
        status = run_in_world(inside)
    finally:
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
    ok, detail = json.loads(said) if said else (False, f"the trial ended with status {status}")
    return ok, detail


def world() -> Capability:
    """A private world with a link in it."""
    name = "private world"
    try:
        ok, said = attempt(lambda: _run(_CABLE, ("ip", "link set p0 up")) if tool_path("ip") else "")
    except CapabilityError as error:
        return Capability(name=name, ok=False, detail=error.reason, remedy=error.remedy, needed=True)
    except UsageError as error:
        return Capability(name=name, ok=False, detail=str(error), remedy="ask before any thread starts", needed=True)
    kind = "as root" if os.getuid() == 0 else "without root, in a user namespace"
    remedy = "" if ok else _MODULE.format("veth")
    return Capability(name=name, ok=ok, detail=f"works, {kind}" if ok else said, remedy=remedy, needed=True)


def kernel() -> list[Capability]:
    """Shapers and netem, with the very lines that a run gives to tc."""
    netem = Netem.of(Link(delay_us=5000, jitter_us=1000, loss=0.01, loss_burst=3, reorder=0.01), 1000)
    return [
        _tried("tbf", _shaper("nic"), "sch_tbf", "shapes access links (--accounting nic)", needed=True),
        _tried("htb, u32", _shaper("pair"), "sch_htb cls_u32", "shape links of pairs (--accounting pair)", needed=True),
        _tried("netem", [f"qdisc add dev p0 root {netem.words()}"], "sch_netem", "delays and loses packets"),
    ]


def _shaper(accounting: Accounting) -> list[str]:
    network = star(2, Link(rate_bps=_RATE_BPS), accounting)
    return tc.node_shapers(network, network.nodes[0])[0].lines("p0", 1)


def _tried(name: str, lines: list[str], modules: str, detail: str, *, needed: bool = False) -> Capability:
    ok, said = attempt(lambda: _run(_CABLE, *(("tc", line) for line in lines)))
    remedy = "" if ok else _MODULE.format(modules)
    return Capability(name=name, ok=ok, detail=detail if ok else said, remedy=remedy, needed=needed)


def faults() -> Capability:
    """Policy routing, by which a schedule's faults cut links."""
    name = "policy routing"
    ok, said = attempt(lambda: _run(_CABLE, ("ip", "rule add pref 100 iif p0 to 10.77.0.1/32 blackhole")))
    remedy = "" if ok else "use a kernel with CONFIG_IP_MULTIPLE_TABLES; only faults of schedules need it"
    return Capability(name=name, ok=ok, detail="cuts links, for faults in schedules" if ok else said, remedy=remedy)


def rules() -> list[Capability]:
    """The two things that the delay line is made of: iptables, and the queues of netfilter."""
    ok, said = attempt(_iptables)
    if ok:
        remedy = ""
    elif installed():
        remedy = "use a kernel with xt_NFQUEUE and iptable_mangle, or nft_compat (sudo modprobe xt_NFQUEUE)"
    else:
        remedy = IPTABLES
    found = [Capability(name="iptables", ok=ok, detail=said, remedy=remedy)]
    if not ok:
        return [*found, Capability(name="NFQUEUE", ok=False, detail="not tried", remedy="iptables first")]
    ok, said = attempt(_nfqueue)
    remedy = "" if ok else _MODULE.format("nfnetlink_queue")
    return [*found, Capability(name="NFQUEUE", ok=ok, detail=said, remedy=remedy)]


def steering() -> Capability:
    """Receive packet steering, which keeps the packets of a flow in order."""

    def body() -> str:
        write_sysctl("net.core.rps_default_mask", "1")
        return "keeps a flow's packets on one core"

    ok, said = attempt(body)
    remedy = "" if ok else "Linux 6.3 or later; without it a busy machine reorders packets now and then"
    return Capability(name="packet steering", ok=ok, detail=said, remedy=remedy)


def network() -> Capability:
    """Four nodes, really built, and what they can send to each other without any limit."""

    def body() -> str:
        with NetnsBackend(star(4, Link(), "pair")) as backend:
            found = capacity(backend)
        return (
            f"carries {found.aggregate_bps / 1e9:.1f} Gbit/s in all ({found.per_pair_bps / 1e9:.2f} a pair), "
            "without any load beside it"
        )

    ok, said = attempt(body)
    remedy = "" if ok else "mend what is missing above, then ask again"
    return Capability(name="4 nodes, unshaped", ok=ok, detail=said, remedy=remedy, needed=True)


def delays() -> Capability:
    """By what a run delays packets here, with the round trip that came out."""

    def body() -> str:
        asked = star(2, _IMPAIRED, "nic")
        with NetnsBackend(asked) as backend, Probers(backend) as probers:
            (ping,) = probers.pings([(asked.nodes[0], asked.nodes[1])], _PINGS)
            backend.check_alive()
            kind = backend.delays
        median, wanted = ping.median_us, asked.longest_round_trip_us
        if median is None or abs(median - wanted) > _ROUND_TRIP_SLACK_US:
            raise EmulationError(f"{kind}: a round trip of {wanted / 1000:g} ms was asked for, found {median} us.")
        why = "this kernel has it" if kind == "netem" else "over NFQUEUE, for this kernel has no netem"
        return f"{kind}, {why}: a round trip of {median / 1000:.2f} ms, asked for {wanted / 1000:g}"

    ok, said = attempt(body)
    remedy = "" if ok else "netem, or iptables and NFQUEUE; links without delay, jitter and loss need neither"
    return Capability(name="a run's delays", ok=ok, detail=said, remedy=remedy)


def _run(*lines: tuple[str, str]) -> str:
    """Run commands until one fails."""
    for tool, line in lines:
        argv = [tool_path(tool) or tool, *line.split()]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = " / ".join(done.stderr.split("\n")).strip(" /")
            shown = f"{tool} {line}"
            raise EmulationError(f"{said} ({shown if len(shown) < _SHOWN else shown[:_SHOWN] + '…'})")
    return ""


def installed() -> list[str]:
    """The flavours of iptables that there are."""
    tools = [f"iptables{flavour}" for flavour in ("", "-legacy", "-nft")]
    return [tool for tool in tools if tool_path(f"{tool}-restore")]


def _iptables() -> str:
    """Every flavour that is installed is given the delay line's rule."""
    works, fails = [], []
    for tool in installed():
        text = "*mangle\n-A FORWARD -j NFQUEUE --queue-num 0\nCOMMIT\n"
        argv = [tool_path(f"{tool}-restore") or tool, "-w"]
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            works.append(f"{tool} works")
        else:
            fails.append(f"{tool}: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else 'fails'}")
    if not works:
        raise EmulationError("; ".join(fails) or "not installed")
    return "; ".join((*works, *fails))


def _nfqueue() -> str:
    """A queue that the delay line's own relay is bound to, with its rule."""
    _run(("ip", "netns add switch"))
    line = DelayLine("switch", 2)
    try:
        line.apply([Rule(queue=0, pairs=((0, 1), (1, 0)), link=_IMPAIRED)])
        line.check()
        return f"holds packets for the delay line's relay ({line.priority})"
    finally:
        line.close()
