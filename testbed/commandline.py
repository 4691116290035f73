"""From words on the command line to a command; a mistake becomes one sentence instead of the parser's box."""

import io
import re
from contextlib import redirect_stderr
from typing import Any

import tyro

from testbed.errors import UsageError

__all__ = ["flag", "parse", "sentence"]

_WHAT = "A testbed for training over slow links. 'testbed COMMAND --help' explains each command."
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_NO_NUMBER = re.compile(r"Error parsing (\S+): no type matching (INT|FLOAT) could be instantiated from \[(.*)\]")
_NO_WHOLE_NUMBER = re.compile(r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)")
_NO_CHOICE = re.compile(r"invalid choice (.*) for argument '(\S+)'. Expected one of \((.*)\)")
_NUMBERS = {"INT": "whole number", "FLOAT": "number"}


def flag(metavar: str) -> Any:
    """How a flag is shown: with a name for its value, and no default where there is none."""
    return tyro.conf.arg(
        metavar=metavar, help_behavior_hint=lambda default: "" if default == "None" else f"(default: {default})"
    )


def parse(commands: Any, arguments: list[str], *, prog: str = "testbed") -> Any:
    """The command that the arguments name, one of the union `commands`; raises `UsageError`.

    `--help` ends the process with status 0. Under `python -O` nothing is parsed: invariants are checked by assertions.
    """
    if not __debug__:
        raise UsageError(
            "Python leaves out assertions, by which every step is checked: unset PYTHONOPTIMIZE, leave out -O"
        )
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(
                commands,
                args=arguments,
                prog=prog,
                description=_WHAT if prog == "testbed" else None,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
    raise UsageError(sentence(box.getvalue()))


def sentence(box: str) -> str:
    """What a box says before its first rule, and the flag that it thinks was meant.

    The box is drawn in dashes where the terminal is none of UTF-8; then a rule stands below its title, too.
    """
    lines = [line.strip("│ ") for line in _COLOURS.sub("", box).splitlines()[1:-1]]
    if lines and not lines[0].strip("-"):
        del lines[0]
    rule = next((number for number, line in enumerate(lines) if not line.strip("─-")), len(lines))
    first = " ".join(lines[:rule]).rstrip(". ")
    if match := _NO_NUMBER.match(first):
        return f"{match[1]}: {match[3]} is no {_NUMBERS[match[2]]}"
    if match := _NO_WHOLE_NUMBER.match(first):
        return f"{match[1]}: {match[2]} is no whole number"
    if match := _NO_CHOICE.match(first):
        choices = sorted(choice for choice in re.findall(r"'([^']*)'", match[3]) if choice != "None")
        return f"{match[2]}: {match[1]} is none of {', '.join(choices)}"
    meant = next((lines[at + 1] for at, line in enumerate(lines[:-1]) if line.startswith("Perhaps you meant")), None)
    if meant and meant.split()[0] in first.split():  # a flag of another command
        meant = None
    return f"{first}; {f'did you mean {meant}?' if meant else '--help lists what there is'}"
