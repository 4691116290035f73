"""Negative controls: each breaks one thing on purpose, and the run must end, or the arm be invalid, and say why."""

import json
import re
import subprocess
import sys

import pytest

from tests.runs.tiny import PRESET, TARGET, environment
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]

UNPACED = ("--pace", "none", "--steps", "2", "--arms", "decentralised")
PACED = ("--target", TARGET, "--arms", "control")


def sabotaged(folder, sabotage: str, *arguments: str, bw: str = "50mbit") -> subprocess.CompletedProcess[str]:
    """`testbed emulate` in which `sabotage` was executed first; the world is a fork, so it holds there too."""
    options = [
        "emulate",
        "--bw",
        bw,
        "--nodes",
        "2",
        "--preset",
        PRESET,
        "--name",
        "run",
        "--share",
        "--no-report",
        *arguments,
    ]
    code = f"import sys\n{sabotage}\nfrom testbed.cli import main\nsys.exit(main({options!r}))"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


WRONG_RATE = """
from dataclasses import replace
from emulation.nodes.netns import NetnsBackend
real = NetnsBackend.shape
def shape(self, network):
    slower = lambda link: replace(link, rate_bps=link.rate_bps and link.rate_bps * 9 // 10)
    real(self, network.change(slower))
    self.network = network
NetnsBackend.shape = shape
"""
BLIND = "NetnsBackend.check_readback = lambda self, readback=None: self.readback()\n"


def test_a_rate_that_reads_back_wrong_ends_the_run_before_training(tmp_path):
    """The kernel holds 45 Mbit/s where 50 were asked."""
    done = sabotaged(tmp_path, WRONG_RATE, *UNPACED)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "50mbit was asked for" in done.stderr
    assert (tmp_path / "runs" / "run" / "FAILED").exists()
    assert not list((tmp_path / "runs" / "run").rglob("rank*.jsonl"))


def test_a_rate_that_measures_wrong_ends_the_run_before_training(tmp_path):
    """The same with the read-back blinded: measurement alone must notice."""
    done = sabotaged(tmp_path, WRONG_RATE + BLIND, *UNPACED)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"\(-(9|10)\.\d %\)", done.stderr)
    assert not list((tmp_path / "runs" / "run").rglob("rank*.jsonl"))


def test_a_loss_that_differs_on_the_link_ends_the_run(tmp_path):
    """Invariant 2: a learned loss that is off by one part in 10^12."""
    sabotage = """
from testbed.driver import comparison
real = comparison.ComparisonRun._learn
def learn(self):
    learned = real(self)
    for one in learned.values():
        one.losses[0][1][0] *= 1 + 1e-12
    return learned
comparison.ComparisonRun._learn = learn
"""
    # the sabotage imports torch, so it must wait until the world is entered: patch when the run begins
    late = f"""
import testbed.cli.dispatch as cli
inner = cli._in_world
def in_world(main, backend):
    def sabotaged():
        exec({sabotage!r}, {{}})
        return main()
    return inner(sabotaged, backend)
cli._in_world = in_world
"""
    done = sabotaged(tmp_path, late, *PACED)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "control, step 1, rank 0: the loss on this link" in done.stderr


def test_a_failing_rank_says_why(tmp_path):
    """A rank whose payload is not the closed form stops with that sentence, and the others do not take the blame."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from testbed.trainer import Trainer\n"
        "    Trainer.payload_of_step = lambda self, index: {'kv_forward': 1}\n"
    )
    path = f"import os; os.environ['PYTHONPATH'] = {str(folder)!r} + ':' + os.environ['PYTHONPATH']"
    done = sabotaged(tmp_path, path, *UNPACED)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "rank 1 on node n1 failed" in done.stderr
    assert "is not the closed form" in done.stderr


NOTHING = """
import os
if os.environ.get("RANK"):
    import torch
    from testbed.parallel.transport import HEAD_BYTES, Sockets
    real = Sockets.exchange
    class Ticket:
        seconds = 0.0
        def __init__(self, messages):
            self.messages = messages
        def wait(self):
            return self.messages
    def exchange(self, outgoing, channels, *, incoming=None, ballast=0):
        if not {"kv_forward", "kv_backward"} & {*channels}:
            return real(self, outgoing, channels, incoming=incoming, ballast=ballast)
        sizes = [None if message is None else message.numel() for message in outgoing]
        count = len([size for size in sizes if size is not None])
        self._sent.update(channels)
        self._sent["ballast"] += ballast * count
        self._sent["other"] += HEAD_BYTES * count
        due = sizes if incoming is None else incoming
        return Ticket([None if size is None else torch.zeros(size, dtype=torch.uint8) for size in due])
    Sockets.exchange = exchange
"""


def test_an_exchange_that_does_nothing_is_noticed(tmp_path):
    """Every rank gets zeros and says that it has sent what it should: what left the nodes tells."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NOTHING)
    path = f"import os; os.environ['PYTHONPATH'] = {str(folder)!r} + ':' + os.environ['PYTHONPATH']"
    done = sabotaged(tmp_path, path, "--target", TARGET, "--arms", "decentralised")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "status 1: decentralised not valid" in done.stdout
    (arm,) = json.loads((tmp_path / "runs" / "run" / "comparison.json").read_text())["arms"]
    assert not arm["valid"]
    assert any("ledger" in why or "bytes" in why for why in arm["why"]), arm["why"]


def test_a_link_that_changes_behind_our_back_makes_the_arms_invalid(tmp_path):
    """Measured again after the steps: exit 1, and each arm says why."""
    late = """
import testbed.cli.dispatch as cli
inner = cli._in_world
def in_world(main, backend):
    def sabotaged():
        from testbed.driver.links import Links
        from dataclasses import replace
        real = Links.verify_again
        def verify_again(self):
            slower = lambda link: replace(link, rate_bps=link.rate_bps // 2)
            self.backend.shape(self.network.change(slower))
            return real(self)
        Links.verify_again = verify_again
        return main()
    return inner(sabotaged, backend)
cli._in_world = in_world
"""
    done = sabotaged(tmp_path, late, *UNPACED)
    assert done.returncode == 1, done.stdout + done.stderr
    arms = json.loads((tmp_path / "runs" / "run" / "comparison.json").read_text())["arms"]
    assert [arm["valid"] for arm in arms] == [False]
    assert "after the timed steps" in arms[0]["why"][0]


def test_a_relay_that_dies_ends_the_run(tmp_path):
    """Packets on delayed links go nowhere then: the run must not wait for them, and say why."""
    deadly = """
import testbed.cli.dispatch as cli
inner = cli._in_world
def in_world(main, backend):
    def sabotaged():
        import os, signal
        from testbed.driver.comparison import ComparisonRun
        from emulation.nodes.netns import NetnsBackend
        NetnsBackend._by_netem = lambda self, network: False
        real = ComparisonRun._train_steps
        def train(self, result, listen):
            os.kill(self.links.backend.delay_line.pid, signal.SIGKILL)
            real(self, result, listen)
        ComparisonRun._train_steps = train
        return main()
    return inner(sabotaged, backend)
cli._in_world = in_world
"""
    done = sabotaged(tmp_path, deadly, *UNPACED, "--delay", "5ms")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "relay ended" in done.stderr
    assert "relay ended" in (tmp_path / "runs" / "run" / "FAILED").read_text()
    assert not (tmp_path / "runs" / "run" / "comparison.json").exists()


def test_a_rate_beyond_the_machine_is_modelled_and_says_so(tmp_path):
    """Nothing is shaped, nothing called measured."""
    done = sabotaged(tmp_path, "", *PACED, bw="90gbit")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "beyond this machine" in done.stdout
    arms = json.loads((tmp_path / "runs" / "run" / "comparison.json").read_text())["arms"]
    assert [(arm["link"], arm["rate_bps"]) for arm in arms] == [("modelled", None)]


TAMPER = """
import testbed.cli.dispatch as cli
inner = cli._in_world
def in_world(main, backend):
    def sabotaged():
        import os, signal, subprocess, threading, time
        from dataclasses import replace
        from testbed.driver.comparison import ComparisonRun
        real, under_way = ComparisonRun._begin, []
        def tamper(deed, backend):
            exec(deed, {"backend": backend, "replace": replace, "subprocess": subprocess, "time": time})
        def begin(self, arm, plan, phase):
            while under_way:
                under_way.pop().join()
            real(self, arm, plan, phase)
            if phase == "timed":
                deed = DEEDS[arm.name]
                under_way.append(threading.Thread(target=tamper, args=(deed, self.links.backend), daemon=True))
                under_way[0].start()
        ComparisonRun._begin = begin
        return main()
    return inner(sabotaged, backend)
cli._in_world = in_world
"""
DEEDS = {
    "a-rank-stands-still": ("""
time.sleep(0.3)
node = backend.network.nodes[1]
backend.freeze(node)
time.sleep(1.2)
backend.thaw(node)""", "more than"),
    "the-rate-is-cut-and-put-back": ("""
network = backend.network
time.sleep(0.3)
backend.change(network.change(lambda link: replace(link, rate_bps=link.rate_bps // 3)))
time.sleep(0.3)
backend.change(network)""", "the links were changed meanwhile"),
    "the-rate-is-ten-times-as-high-for-a-while": ("""
network = backend.network
time.sleep(0.3)
backend.change(network.change(lambda link: replace(link, rate_bps=link.rate_bps * 10)))
time.sleep(0.3)
backend.change(network)""", "the links were changed meanwhile"),
    "the-rate-is-ten-times-as-high-and-nobody-listens": ("""
from emulation.nodes.notices import Notices
heard, network = Notices.heard, backend.network
Notices.heard = lambda self: heard(self) and []
time.sleep(0.3)
backend.change(network.change(lambda link: replace(link, rate_bps=link.rate_bps * 10)))
time.sleep(2.5)
backend.change(network)
Notices.heard = heard""", "its links cannot carry its bytes in less than"),
    "the-switch-drops-packets-for-a-while": ("""
rule = "-m statistic --mode random --probability 0.05 -j DROP"
run = "ip netns exec switch iptables {} FORWARD " + rule
subprocess.run(run.format("-A"), shell=True, check=True)
time.sleep(2.5)
subprocess.run(run.format("-D"), shell=True, check=True)""", "sent twice"),
    "two-busy-loops": ("""
loops = [subprocess.Popen(["timeout", "4", "sh", "-c", "while :; do :; done"]) for _ in range(2)]
[loop.wait() for loop in loops]""", ""),
    "six-busy-loops": ("""
loops = [subprocess.Popen(["timeout", "4", "sh", "-c", "while :; do :; done"]) for _ in range(6)]
[loop.wait() for loop in loops]""", ""),
    "nothing": ("pass", None),
}  # fmt: skip
LATER = ("the-rate-is-ten-times-as-high-and-nobody-listens", "two-busy-loops", "six-busy-loops")
"""In acceptance: the machine's own load spares no other test."""


@pytest.mark.parametrize(
    "deeds",
    [
        pytest.param([deed for deed in DEEDS if deed not in LATER], id="links and ranks"),
        *(pytest.param([deed], id=deed, marks=pytest.mark.acceptance) for deed in LATER),
    ],
)
@pytest.mark.timeout(600)
def test_what_is_done_to_a_link_or_a_rank_during_timed_steps_is_noticed(tmp_path, deeds):
    """Though all is as it was at the last proof: such steps are invalid, with the reason, and timed again. An arm for
    each deed."""
    for deed in deeds:
        text = f'name = "{deed}"\nexchange = "all-gather"\nsync = "average"\nlink = "bw"\n'
        (tmp_path / f"{deed}.toml").write_text(text)
    files = ",".join(f"{deed}.toml" for deed in deeds)
    tamper = TAMPER.replace("DEEDS", repr({deed: DEEDS[deed][0] for deed in deeds}))
    done = sabotaged(tmp_path, tamper, "--target", TARGET, "--arms", files, bw="60mbit")
    assert (tmp_path / "runs" / "run" / "comparison.json").exists(), done.stdout + done.stderr
    arms = json.loads((tmp_path / "runs" / "run" / "comparison.json").read_text())["arms"]
    assert [arm["arm"] for arm in arms] == deeds
    for arm in arms:
        summary = json.loads((tmp_path / "runs" / "run" / arm["arm"] / "summary.json").read_text())
        check_noticed(arm, summary["timed"]["steps"], DEEDS[arm["arm"]][1])


def check_noticed(arm, steps, said: str | None) -> None:
    """An arm's steps tell of the deed in these words; None: of none; "": it may have done no harm, but no step that
    counts is longer than it should be without being suspect."""
    reasons = [text for step in steps for text in step["why"]]
    seconds = [(step["step_seconds"], step["valid"], step["suspect"]) for step in steps]
    if said is None:
        assert not any("changed meanwhile" in text or "sent twice" in text for text in reasons), reasons
        assert arm["valid"], (arm["why"], seconds)
    elif not said:
        unmarked = [step["step_seconds"] for step in steps if step["valid"] and not step["suspect"]]
        assert not unmarked or max(unmarked) < 1.12 * min(step["step_seconds"] for step in steps), seconds
    else:
        assert any(said in text for text in reasons), (arm["arm"], reasons, seconds)
        assert arm["invalid_steps"] >= 1
        good = [step["step_seconds"] for step in steps if step["valid"]]
        assert arm["step_seconds_mean"] == pytest.approx(sum(good) / len(good))
