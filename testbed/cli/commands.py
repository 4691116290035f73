"""What can be typed behind `testbed`: one dataclass a command, its fields the flags, its docstrings the help."""

from dataclasses import dataclass
from typing import Annotated, Literal, Union

import tyro

from testbed.commandline import flag
from testbed.config.training import Train
from testbed.learn.run import Learn
from testbed.settings.emulate import Request
from testbed.settings.network_flags import Asked, AskedLink
from testbed.sweep.run import SweepCommand

__all__ = [
    "Clean",
    "Command",
    "DataCommand",
    "DataPrepare",
    "DataShow",
    "Diff",
    "Doctor",
    "Emulate",
    "Exec",
    "Learn",
    "Presets",
    "Report",
    "Runs",
    "ShapeInterface",
    "SweepCommand",
    "Train",
    "Verify",
]


@dataclass(frozen=True, kw_only=True)
class Emulate(Request):
    """Train five arms over an emulated network and compare them: loss against hours, bytes on the wire.

    For example: testbed emulate --bw 300mbit; testbed emulate --network cable --live 10min.
    """

    dry_run: bool = False
    """Print the resolved configuration and every command, and do nothing."""
    no_report: bool = False
    """Leave out figures and report.html; 'testbed report' makes both later."""
    json: bool = False
    """Print comparison.json at the end."""


@dataclass(frozen=True, kw_only=True)
class Verify(Asked):
    """Build links, measure every one of them, and compare with what was asked.

    For example: testbed verify --bw 100mbit --delay 20ms; testbed verify --network cable.
    """

    tolerance_rate: Annotated[str, flag("PERCENT")] = "2%"
    """How far a goodput may be from the expected one."""
    tolerance_round_trip: Annotated[str, flag("TIME")] = "1ms"
    """How far a median round trip may be from the asked one, beside 2 % of it."""
    dry_run: bool = False
    """Print every command, and do nothing."""
    json: bool = False
    """Print what was measured as JSON."""


@dataclass(frozen=True, kw_only=True)
class Exec(Asked):
    """Run any command on every node of an emulated network: testbed exec --bw 300mbit -- CMD…

    The command stands behind '--'. RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, GLOO_SOCKET_IFNAME,
    NCCL_SOCKET_IFNAME and NODE_ADDRS are set. Output is prefixed with the node; the exit status is the worst one. At
    the end the bytes that each node sent and received are printed.
    """

    schedule: Annotated[str | None, flag("FILE")] = None
    """How links change and fail meanwhile: a .toml, .csv, or Mahimahi .up/.down file."""
    shell: Annotated[str | None, flag("NODE")] = None
    """Open a shell on this node (n0), beside the command if there is one."""
    expect_bytes: Annotated[str | None, flag("SIZE")] = None
    """Fail unless each node has sent so much over its link (500MB): a program that found another way has not."""
    record: Annotated[str | None, flag("FILE")] = None
    """Write what was moved, as JSON, to this file."""
    dry_run: bool = False
    """Print every command, and do nothing."""


@dataclass(frozen=True, kw_only=True)
class ShapeInterface(AskedLink):
    """Make an interface of this machine an access link: testbed shape eth0 --bw 300mbit --delay 20ms

    For real machines, one of which types it at each end: the rate is what it sends, and what it receives; a round trip
    is the sum of both ends' delays. testbed shape eth0 --undo takes it away. Needs root.
    """

    interface: Annotated[tyro.conf.Positional[str], flag("INTERFACE")]
    """Such as eth0; 'ip -brief link' lists them."""
    undo: bool = False
    """Take away what is ours on it."""
    force: bool = False
    """Replace what somebody else has put on it, too."""
    hold: bool = False
    """Stay, check it every second, and take it away when ended (Ctrl-C). A kernel without netem delays only so."""
    dry_run: bool = False
    """Say what is on it, and do nothing."""


@dataclass(frozen=True, kw_only=True)
class DataPrepare:
    """Turn texts into a corpus of token ids: testbed data prepare fineweb --tokens 100M; testbed data prepare texts/

    Killed at any time, it goes on where it was when the same is typed again.
    """

    name: Annotated[tyro.conf.Positional[str], flag("NAME|PATH")]
    """fineweb, c4, bookcorpus, pg19, stdlib; a text, .jsonl or .parquet file, a folder of them; a .toml of a set."""
    tokens: Annotated[str, flag("COUNT")] = "100M"
    """At least so many (20k, 100M, 1.5B), or all there are."""
    tokenizer: Annotated[str | None, flag("NAME|PATH")] = None
    """bytes, gpt2, bpe (trained on these texts), or a tokenizer's files; unless given, gpt2 for sets, else bytes."""
    vocabulary: Annotated[int | None, flag("N")] = None
    """Token ids of a bpe (4096 unless given)."""
    out: Annotated[str | None, flag("DIR")] = None
    """The folder to make; corpora/NAME-TOKENIZER unless given."""
    column: Annotated[str | None, flag("NAME")] = None
    """Where the text is in JSONL, parquet and sets; text unless given."""
    document: Literal["file", "paragraph"] = "file"
    """What one document of a text file is: all of it, or what stands between empty lines."""
    json: bool = False
    """Print the description as JSON."""


@dataclass(frozen=True, kw_only=True)
class DataShow:
    """What a prepared corpus holds, after every checksum has been verified."""

    folder: Annotated[tyro.conf.Positional[str], flag("DIR")]
    """The folder, or its name in corpora/."""
    json: bool = False
    """Print it as JSON."""


@dataclass(frozen=True, kw_only=True)
class DataCommand:
    """Prepare corpora, or look at them: testbed data prepare NAME; testbed data show DIR"""

    what: Annotated[
        Union[  # noqa: UP007 (as below)
            Annotated[DataPrepare, tyro.conf.subcommand("prepare")],
            Annotated[DataShow, tyro.conf.subcommand("show")],
        ],
        tyro.conf.arg(name=""),
    ]


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What this machine can do, and what to change where it cannot; exit status 1 if a run could not be."""

    json: bool = False
    """Print it as JSON."""


@dataclass(frozen=True, kw_only=True)
class Presets:
    """What can be trained (experiments/presets): sizes, data, and what K and V weigh."""

    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of this folder (runs/), newest last.

    For example: testbed runs --kind sweep; testbed runs --state failed; testbed runs --name '2026-11-*'.
    """

    kind: Annotated[Literal["emulate", "learn", "sweep"] | None, flag("emulate|learn|sweep")] = None
    """List only runs that this command made."""
    state: Annotated[Literal["broken", "done", "failed", "invalid", "unfinished"] | None, flag("done|failed|…")] = None
    """Only those in this state: done, failed, invalid, unfinished; broken: its records cannot be read."""
    name: Annotated[str | None, flag("PATTERN")] = None
    """Only those with such a name; * stands for anything."""
    tensorboard: Annotated[str | None, flag("RUN|DIR")] = None
    """Write this run's losses as TensorBoard events into its folder (needs the extra track)."""
    watch: Annotated[str | None, flag("RUN|DIR")] = None
    """Show what this run says while it runs, until it ends; its folder may be on a disk of another machine."""
    json: bool = False
    """Print them as JSON."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One HTML file of a comparison or a sweep: answer, evidence of the links, figures, validity, how to repeat it.
    Figures are drawn, too, where the run left them out.

    For example: testbed report bandwidth_latency. It needs nothing else to be opened, and fetches nothing.
    """

    run: Annotated[tyro.conf.Positional[str], flag("RUN|DIR")]
    """A run in runs/ (testbed runs lists them), or its folder."""


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Two comparisons side by side: settings, code, data and machine where they differ, links and results of each arm.

    For example: testbed diff yesterday today.
    """

    one: Annotated[tyro.conf.Positional[str], flag("RUN|DIR")]
    """A run's name, or its folder."""
    other: Annotated[tyro.conf.Positional[str], flag("RUN|DIR")]
    """The one to set beside it; differences are of this one against the first."""
    json: bool = False
    """Print them as JSON."""


@dataclass(frozen=True, kw_only=True)
class Clean:
    """End what is left of crashed runs of ours, if anything is; runs/ stays."""

    dry_run: bool = False
    """Print what would be ended, and end nothing."""


Command = Union[  # noqa: UP007 (a type made of values, which | cannot join)
    Annotated[Emulate, tyro.conf.subcommand("emulate")],
    Annotated[Verify, tyro.conf.subcommand("verify")],
    Annotated[Exec, tyro.conf.subcommand("exec")],
    Annotated[ShapeInterface, tyro.conf.subcommand("shape")],
    Annotated[Train, tyro.conf.subcommand("train")],
    Annotated[Learn, tyro.conf.subcommand("learn")],
    Annotated[SweepCommand, tyro.conf.subcommand("sweep")],
    Annotated[DataCommand, tyro.conf.subcommand("data")],
    Annotated[Doctor, tyro.conf.subcommand("doctor")],
    Annotated[Presets, tyro.conf.subcommand("presets")],
    Annotated[Runs, tyro.conf.subcommand("runs")],
    Annotated[Report, tyro.conf.subcommand("report")],
    Annotated[Diff, tyro.conf.subcommand("diff")],
    Annotated[Clean, tyro.conf.subcommand("clean")],
]
