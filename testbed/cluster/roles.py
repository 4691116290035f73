"""What the containers of docker-compose.yml do: `python -m testbed.cluster.roles ROLE`.

    node       waits until its shaper has shaped its link and read it back, measures it with the others, then trains
               arm after arm as a rank; it has no capability
    shaper     shares its node's network, shapes it, checks it every second, and ends with its node; NET_ADMIN alone
    check      says, before anything else starts, what is wrong with what is asked for
    collector  starts when all nodes have ended well; from what they wrote it makes a folder in runs/

Node and shaper know of each other through an abstract socket of their network namespace, which no other container
reaches: a node whose shaper is gone ends, and so does a shaper whose node is gone.

What is asked for comes from the environment: NODES, RANK, BW, DOWN, DELAY, LOSS, ARMS, PRESET, STEPS, SEED, NAME.
"""

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TypedDict

from pydantic import JsonValue

from emulation.errors import EmulationError, LinkError
from emulation.errors import UsageError as NetworkUsageError
from emulation.kernel.facts import ShaperFacts
from emulation.measure.neighbour_check import MeasuredFacts, measure
from emulation.nodes.interface import Interface
from emulation.nodes.readback import read_devices
from emulation.spec.network import Link
from testbed.config.training import Train, resolve_training
from testbed.data.integrity import check_data
from testbed.errors import RunFailed, TestbedError, UsageError, in_words
from testbed.records import write_json
from testbed.rundir.directory import RUNS, check_name
from testbed.settings.emulate import check_arm, check_nodes
from testbed.settings.network_flags import AskedLink, link_of, words_of

__all__ = ["main"]

INTERFACE = "eth0"
OUT = Path("out")
"""Of all nodes, and read by the collector."""
_MEETING = "\0slowlink-testbed"
_PROVEN = Path("/tmp/proven")
"""There once this node has measured its link; a health check looks for it."""
_WAIT_SECONDS, _CHECK_SECONDS = 60.0, 1.0
_PORT = 29_500
_MOST_NODES = 8


def _given(name: str, default: str | None = None) -> str | None:
    """A variable that is set and not empty: compose passes on those that nobody has set as empty ones."""
    return os.environ.get(name) or default


def _nodes() -> int:
    text = _given("NODES", "4")
    assert text is not None
    if not text.isdigit() or not 2 <= int(text) <= _MOST_NODES:
        raise UsageError(f"NODES={text} was given; there are services for 2 to {_MOST_NODES} nodes")
    return int(text)


def _link() -> Link:
    asked = AskedLink(bw=_given("BW", "300mbit"), down=_given("DOWN"), delay=_given("DELAY"), loss=_given("LOSS"))
    return link_of(asked.changes())


def _arms() -> list[str]:
    names = [arm.strip() for arm in (_given("ARMS", "subspace,control") or "").split(",") if arm.strip()]
    if not names or any("/" in name for name in names):
        raise UsageError(f"ARMS={os.environ.get('ARMS')} was given; type names: ARMS=subspace,control")
    return names


class ShaperSays(TypedDict, total=False):
    """A shaper's line: before it is used, and at the end."""

    delays: str | None
    found: dict[str, ShaperFacts]
    """What the kernel has, by device."""


class ArmRun(TypedDict):
    """What an arm took on a node."""

    seconds: float
    wire_tx_bytes: int


class NodeRecord(TypedDict):
    """`nodes/<rank>.json`."""

    rank: int
    shaped: ShaperSays
    link: MeasuredFacts
    arms: dict[str, ArmRun]


class ArmRow(TypedDict):
    """What an arm came to."""

    arm: str
    steps: int
    step_seconds_mean: float
    hours: float
    loss_last: float
    validation: dict[str, JsonValue] | None
    payload_bytes_per_step_each: float
    wire_tx_bytes: list[int]
    """By rank."""


# -- the shaper


def shaper() -> int:
    """Shape, tell the node, and stay as long as it does."""
    with Interface(INTERFACE, _link()) as interface, _meet() as node:
        _say(node, {"delays": interface.delays, "found": interface.check()})
        print(f"{INTERFACE} is {words_of(interface.link)}", flush=True)
        while not select.select([node], [], [], _CHECK_SECONDS)[0]:
            interface.check()
        found = interface.check()
        with suppress(OSError):  # it is gone
            _say(node, {"found": found})  # it is done, and waits for this
    return 0


def _meet() -> socket.socket:
    """The node, which shares this network."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(_MEETING)
            return sock
        except ConnectionRefusedError:
            sock.close()
            if time.monotonic() > deadline:
                raise RunFailed("its node has not come") from None
            time.sleep(0.1)


def _say(sock: socket.socket, message: ShaperSays) -> None:
    sock.sendall(json.dumps(message).encode() + b"\n")


# -- a node


def node(rank: int) -> int:
    """Prove the link, train every arm, leave a record."""
    nodes, link = _nodes(), _link()
    names = [f"node{each}" for each in range(nodes)]
    if rank == 0:  # what an earlier cluster left; no rank writes before all have met
        for old in OUT.iterdir():
            shutil.rmtree(old)
    with _Shaper() as guard:
        shaped = guard.hear()
        measured = measure(rank, names, link)
        print(
            f"link to {measured.peer}: {measured.goodput_bps / 1e6:.1f} Mbit/s of goodput, round trip "
            f"{measured.round_trip_us / 1000:.2f} ms",
            flush=True,
        )
        guard.check()
        _PROVEN.touch()
        arms = {arm: _train(arm, number, rank, nodes, guard) for number, arm in enumerate(_arms())}
        guard.done()
    record: NodeRecord = {"rank": rank, "shaped": shaped, "link": measured.record(), "arms": arms}
    write_json(OUT / "nodes" / f"{rank}.json", record)
    return 0


def _shaper_comes() -> socket.socket:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(_MEETING)
        listener.listen(1)
        listener.settimeout(_WAIT_SECONDS)
        try:
            return listener.accept()[0]
        except TimeoutError:
            raise LinkError("no shaper has come: links that are not shaped are not used.") from None


class _Shaper:
    """The connection of this node's shaper, for as long as the link counts."""

    def __enter__(self) -> "_Shaper":
        self.sock = _shaper_comes()
        self.sock.settimeout(_WAIT_SECONDS)
        self.file = self.sock.makefile("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def hear(self) -> ShaperSays:
        """What it says that the kernel has."""
        try:
            line = self.file.readline()
        except TimeoutError:
            line = b""
        if not line:
            raise LinkError("the shaper has ended: what is measured on its link does not count.")
        return json.loads(line)

    def check(self) -> None:
        """Raise LinkError if it has ended: until it is asked it says nothing more."""
        if select.select([self.sock], [], [], 0)[0]:
            raise LinkError("the shaper has ended: what is measured on its link does not count.")

    def done(self) -> None:
        """Have it look once more."""
        self.check()
        self.sock.shutdown(socket.SHUT_WR)
        self.hear()


def _train(arm: str, number: int, rank: int, nodes: int, guard: _Shaper) -> ArmRun:
    """One arm, as a rank of its own; ended if the shaper ends."""
    out = OUT / arm
    argv = [sys.executable, "-m", "testbed.trainer", "--arm", arm, "--out", str(out), "--transport", "sockets"]
    for name in ("PRESET", "STEPS", "SEED"):
        if (value := _given(name)) is not None:
            argv += [f"--{name.lower()}", value]
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(nodes),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "node0",
        "MASTER_PORT": str(_PORT + number),
        "OMP_NUM_THREADS": "1",
    }
    before, began = _wire_bytes(), time.monotonic()
    process = subprocess.Popen(argv, env=environment)
    try:
        while process.poll() is None:
            time.sleep(_CHECK_SECONDS)
            guard.check()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise RunFailed(f"arm {arm} ended with status {process.returncode} on rank {rank}")
    return {"seconds": time.monotonic() - began, "wire_tx_bytes": _wire_bytes() - before}


def _wire_bytes() -> int:
    """Sent, as the shaper counts it (layer 2); reading takes no capability."""
    return read_devices([INTERFACE])[INTERFACE]["bytes"]


# -- before and after


def check() -> int:
    """Whether what is asked for can be trained, and the results will have a place; nothing is written."""
    _folder()
    _link()
    nodes = _nodes()
    for arm in _arms():
        training = resolve_training(
            Train(arm=arm, preset=_given("PRESET"), steps=_number("STEPS"), seed=_number("SEED"))
        )
        preset = training.resolved_preset()
        check_data(preset.data, preset.model)
        check_arm(training.resolved_arm(), preset, nodes, None)
        check_nodes(nodes, preset, None, whole=False)
    return 0


def _number(name: str) -> int | None:
    text = _given(name)
    if text is not None and not text.isdigit():
        raise UsageError(f"{name}={text} was given; type a whole number")
    return None if text is None else int(text)


def _folder() -> Path:
    """Of the results; another name where one is taken, for at the end it is too late to ask."""
    if RUNS.is_dir() and not os.access(RUNS, os.W_OK | os.X_OK):
        owner, ours = RUNS.stat(), f"{os.getuid()}:{os.getgid()}"
        raise UsageError(
            f"runs/ belongs to user {owner.st_uid}, and OWNER={ours} may not write there: type "
            f"'export OWNER={owner.st_uid}:{owner.st_gid}', then this again"
        )
    name = _given("NAME") or time.strftime("%Y-%m-%d_%H-%M-%S_compose")
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return check_name(next(name for name in names if not (RUNS / name).exists()), "")


def collector() -> int:
    """A folder in runs/ from what the nodes wrote, and a table."""
    nodes, arms = _nodes(), _arms()
    folder = _folder()
    records = []
    for rank in range(nodes):
        file = OUT / "nodes" / f"{rank}.json"
        if not file.is_file():
            raise RunFailed(f"node {rank} has left no record")
        records.append(json.loads(file.read_text()))
    rows = [_row(arm, records) for arm in arms]
    folder.mkdir(parents=True)
    for arm in arms:
        shutil.copytree(OUT / arm / "metrics", folder / arm / "metrics")
    write_json(folder / "compose.json", {"kind": "compose", "nodes": records, "arms": rows})
    _print(rows, records, folder)
    return 0


def _row(arm: str, records: list[NodeRecord]) -> ArmRow:
    """What an arm came to, from rank 0's steps and all ranks' bytes."""
    lines = [json.loads(line) for line in (OUT / arm / "metrics" / "rank0.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step_seconds" in line]
    validations = [line["validation"] for line in lines if "validation" in line]
    return {
        "arm": arm,
        "steps": len(steps),
        "step_seconds_mean": sum(line["step_seconds"] for line in steps) / len(steps),
        "hours": steps[-1]["time_seconds"] / 3600,
        "loss_last": steps[-1]["loss"],
        "validation": validations[-1] if validations else None,
        "payload_bytes_per_step_each": sum(sum(line["payload_bytes"].values()) for line in steps) / len(steps),
        "wire_tx_bytes": [record["arms"][arm]["wire_tx_bytes"] for record in records],
    }


def _print(rows: list[ArmRow], records: list[NodeRecord], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=110)
    links = Table(title="links, measured by the nodes in a ring")
    for name in ("from", "to", "goodput, Mbit/s", "expected", "round trip, ms", "asked"):
        links.add_column(name)
    for record in records:
        link = record["link"]
        expected = "–" if link["expected_bps"] is None else f"{link['expected_bps'] / 1e6:.1f}"
        trips = [f"{each / 1000:.2f}" for each in (link["round_trip_us"], link["expected_round_trip_us"])]
        links.add_row(f"node{record['rank']}", link["peer"], f"{link['goodput_bps'] / 1e6:.1f}", expected, *trips)
    console.print(links)
    table = Table(title="arms, trained on these links at this machine's own pace")
    for name in ("arm", "steps", "s a step", "payload a step", "sent in all, MB", "last loss"):
        table.add_column(name)
    for row in rows:
        sent = sum(row["wire_tx_bytes"]) / 1e6
        payload = f"{row['payload_bytes_per_step_each'] / 1e6:.3f} MB"
        cells = (
            f"{row['steps']}",
            f"{row['step_seconds_mean']:.3f}",
            payload,
            f"{sent:.2f}",
            f"{row['loss_last']:.4f}",
        )
        table.add_row(row["arm"], *cells)
    console.print(table)
    print(f"everything is in {folder}", flush=True)


def main(argv: list[str]) -> int:
    """The exit status of a container."""
    roles = {"check": check, "node": lambda: node(rank), "shaper": shaper, "collector": collector}
    if len(argv) != 1 or argv[0] not in roles:
        print(f"testbed: a role is needed: {', '.join(roles)}", file=sys.stderr)
        return 2
    try:
        rank = int(_given("RANK", "0") or 0)
        if argv[0] in ("node", "shaper") and rank >= _nodes():  # a shaper can only join a container that is there
            (_meet if argv[0] == "shaper" else _shaper_comes)().close()
            return 0
        return roles[argv[0]]()
    except (UsageError, NetworkUsageError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 2
    except (TestbedError, EmulationError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"testbed: {in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
