"""`testbed shape`: an interface of a real machine as an access link, and back."""

import signal
import time
from typing import TYPE_CHECKING

from emulation.capability import require_tools
from emulation.errors import UsageError as NetworkUsageError
from emulation.interface import Interface
from emulation.network import Link
from emulation.settings import alter
from emulation.units import format_delay, format_percent, format_rate
from testbed.errors import UsageError

if TYPE_CHECKING:
    from testbed.commands import Shape

__all__ = ["link_of", "shape", "words_of"]

_CHECK_SECONDS = 1.0
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def shape(command: "Shape") -> int:
    """Do as it says; 0."""
    changes = command.changes()
    require_tools()
    if command.undo:
        if changes:
            raise UsageError("--undo takes a link away, and another was asked for: type one of the two")
        if command.dry_run:
            there = "would be taken away" if Interface(command.interface).ours else "nothing of ours is there"
            print(f"{command.interface}: {there}")
            return 0
        done = Interface(command.interface).undo()
        print(f"{command.interface} is as it was" if done else f"nothing of ours is on {command.interface}")
        return 0
    link = link_of(changes)
    interface = Interface(command.interface, link, framing=command.framing or "layer2")
    if command.dry_run:
        there = ", ".join(interface.foreign()) or ("a link of ours" if interface.ours else "nothing")
        held = "; on a kernel without netem it takes --hold" if link.impaired and not command.hold else ""
        print(f"{command.interface}, which carries {there}, would be {words_of(link)}{held}")
        return 0
    for number in _ENDS:  # a connection that breaks must not leave a link half taken away
        signal.signal(number, signal.default_int_handler)
    interface.shape(hold=command.hold, force=command.force)
    said = f"{command.interface} is {words_of(link)}" + (f" (delayed by {interface.delays})" if link.impaired else "")
    if not command.hold:
        print(f"{said}; testbed shape {command.interface} --undo takes it away")
        return 0
    try:
        print(f"{said} until this ends (Ctrl-C)", flush=True)
        while True:
            time.sleep(_CHECK_SECONDS)
            interface.check()
    except KeyboardInterrupt:
        return 0
    finally:
        for number in _ENDS:
            signal.signal(number, signal.SIG_IGN)
        interface.undo()
        print(f"{command.interface} is as it was", flush=True)


def link_of(changes: dict[str, object]) -> Link:
    """The link that flags ask for."""
    if not changes:
        raise UsageError("no link was asked for: give a rate, --bw 300mbit, a delay, --delay 20ms, or --undo")
    try:
        return alter(Link(), changes)
    except NetworkUsageError as error:
        raise UsageError(f"{error}".rstrip(".")) from None


def words_of(link: Link) -> str:
    """For people: "300mbit each way, 20ms late, 1% lost"."""
    rate = "as fast as it was"
    if link.rate_bps is not None:
        rate = f"{format_rate(link.rate_bps)} each way"
        if link.down_bps is not None and link.down_bps != link.rate_bps:
            rate = f"{format_rate(link.rate_bps)} up, {format_rate(link.down_bps)} down"
    parts = [rate, f"{format_delay(link.delay_us)} late" if link.delay_us else ""]
    parts.append(f"{format_percent(link.loss)} lost" if link.loss else "")
    return ", ".join(part for part in parts if part)
