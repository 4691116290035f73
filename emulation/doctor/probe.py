"""Everything that a machine can do and cannot, and what a run would take there. It changes nothing on the host.

`python -m emulation.doctor.probe` prints it as JSON.
"""

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

from emulation.doctor import hardware, kernel_checks
from emulation.doctor.capability import INSTALL, Capability, missing_tools
from emulation.kernel.commands import tool_path

__all__ = ["probe"]

_UNTRIED = ("tbf", "htb, u32", "4 nodes, unshaped", "netem", "iptables", "NFQUEUE", "policy routing", "packet steering")
_NEEDED = 3
"""So many of them are needed by every run."""


def probe(results: Path = Path("runs")) -> list[Capability]:
    """What was tried and looked up: first what every run needs. Call it before any thread starts.

    `results`: the folder in which results would be.
    """
    steal = hardware.Steal()
    tools, world = _tools(), kernel_checks.world()
    tried = _tried() if tools.ok and world.ok else _not_tried(tools, world)
    decided = _decided(tools, world, tried)
    if decided[-1].ok:
        tried = [_dispensable(each) for each in tried]
    looked_up = [hardware.congestion_control(), hardware.cores(), hardware.memory(), hardware.disk(results)]
    looked_up += [hardware.pressure(), hardware.waiting(), hardware.gpu(), hardware.docker(), steal.capability()]
    found = [tools, world, *decided, *tried, *looked_up]
    return sorted(found, key=lambda each: not each.needed)  # a stable sort


def _tried() -> list[Capability]:
    return [
        *kernel_checks.kernel(),
        kernel_checks.network(),
        *kernel_checks.rules(),
        kernel_checks.faults(),
        kernel_checks.steering(),
    ]


def _not_tried(tools: Capability, world: Capability) -> list[Capability]:
    """Every check reported as not tried, where no world can be made."""
    first = f"{(world if not world.ok else tools).name} first"
    found = [
        Capability(name=name, ok=False, detail="not tried", remedy=first, needed=number < _NEEDED)
        for number, name in enumerate(_UNTRIED)
    ]
    flavours = ", ".join(kernel_checks.installed())
    detail, remedy = (
        (f"installed: {flavours}; not tried", first) if flavours else ("not installed", kernel_checks.IPTABLES)
    )
    return [each if each.name != "iptables" else replace(each, detail=detail, remedy=remedy) for each in found]


def _decided(tools: Capability, world: Capability, tried: list[Capability]) -> list[Capability]:
    """What a run takes for its nodes and for its delays, and why."""
    cause = next((each for each in (tools, world, *tried) if each.needed and not each.ok), None)
    if cause is None:
        nodes = Capability(name="a run's nodes", ok=True, detail="netns: worlds and shapers work, links are real")
        return [nodes, _delays(tried)]
    host = f"host only, for {cause.name} is missing: --backend host trains on loopback, links are modelled"
    return [
        Capability(name="a run's nodes", ok=False, detail=host, remedy=f"{cause.name} first"),
        Capability(name="a run's delays", ok=False, detail="none: host nodes have none", remedy=f"{cause.name} first"),
    ]


def _delays(tried: list[Capability]) -> Capability:
    """By what packets are delayed; where by nothing, what the delay line lacks is to blame."""
    found = kernel_checks.delays()
    cause = next((each for each in tried if each.name in ("iptables", "NFQUEUE") and not each.ok), None)
    if found.ok or cause is None:
        return found
    return replace(found, detail=f"none: no netem, and no delay line without {cause.name}", remedy=cause.remedy)


def _dispensable(tried: Capability) -> Capability:
    """One of the two ways to delay packets is enough."""
    if tried.ok or tried.name not in ("netem", "iptables", "NFQUEUE"):
        return tried
    return replace(tried, remedy=f"nothing, for delays work without it; otherwise {tried.remedy}")


def _tools() -> Capability:
    name, missing = "ip, tc, nsenter", missing_tools()
    if missing:
        return Capability(name=name, ok=False, detail=f"missing: {', '.join(missing)}", remedy=INSTALL, needed=True)
    version = subprocess.run([str(tool_path("ip")), "-V"], capture_output=True, text=True, check=False)
    listed = subprocess.run([str(tool_path("ip")), "-j", "link"], capture_output=True, text=True, check=False)
    detail = version.stdout.strip().removeprefix("ip utility, ")
    try:
        json.loads(listed.stdout)
    except ValueError:
        detail = f"{detail} prints no JSON"
        return Capability(name=name, ok=False, detail=detail, remedy=f"a newer iproute2: {INSTALL}", needed=True)
    return Capability(name=name, ok=True, detail=detail, needed=True)


if __name__ == "__main__":
    print(json.dumps([asdict(each) for each in probe()], indent=2))
