"""`testbed shape`: an interface of a real machine as an access link, and back."""

import signal
import time
from typing import TYPE_CHECKING

from emulation.doctor.capability import require_tools
from emulation.nodes.interface import Interface
from testbed.errors import UsageError
from testbed.settings.network_flags import link_of, words_of

if TYPE_CHECKING:
    from testbed.cli.commands import ShapeInterface

__all__ = ["shape"]

_CHECK_SECONDS = 1.0
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def shape(command: "ShapeInterface") -> int:
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
