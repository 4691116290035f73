"""`testbed shape` on the two ends of a cable, both machines' links proven by themselves, and taken away again."""

import json
import subprocess
import sys

import pytest

from tests.runs.tiny import environment, run_testbed
from tests.worlds import needs_world

LINK = ("--bw", "40mbit", "--delay", "10ms")


@pytest.fixture(scope="module")
def two():
    """What `tests.emulation.two_machines` found; of at most three times, the first in which this machine let it measure
    in peace."""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-m", "tests.emulation.two_machines", *LINK],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        if all(measured.get("ok") for measured in found["measured"]):
            break
    return found


@pytest.mark.world
@pytest.mark.alone
@needs_world
class TestTwoMachines:
    def test_the_link_is_what_was_asked(self, two):
        """As both ends measure it: 5 % of the goodput, 5 % and 2 ms of the round trip."""
        for measured in two["measured"]:
            assert measured.get("ok"), measured
            assert measured["expected_round_trip_us"] == 20_000

    def test_a_link_that_is_not_what_was_asked_is_noticed(self, two):
        """Negative control: the same, measured before it was shaped."""
        assert ["of goodput arrived" in measured["error"] for measured in two["unshaped"]] == [True, True]

    def test_it_ends_as_it_began(self, two):
        """Ctrl-C, and by another process: not a qdisc, a device or a rule is left."""
        assert [status for *_, status in two["ended"]] == [0, 0], two["ended"]
        assert two["while"] != two["before"]
        assert two["after"] == two["before"]
        assert two["once"][0] == 0, two["once"]
        assert two["undone"][0] == 0
        assert two["undone"][2]

    def test_what_is_not_ours_stays(self, two):
        """A tree of qdiscs, unless told: then it is replaced, leaves, filters and all."""
        status, said, kept, forced, clean = two["foreign"]
        assert (status, kept, forced, clean) == (2, True, 0, True), said
        assert all(each in said for each in ("htb 5:", "tbf 51:", "clsact ffff:"))
        assert "--force" in said

    def test_an_interface_that_is_not_there(self, two):
        status, said = two["nosuch"]
        assert status == 2
        assert "there are: eth0" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eth0",), "--bw"),
        (("eth0", "--bw", "fast"), "fast"),
        (("lo", "--bw", "10mbit"), "'lo'"),
        (("eth0", "--undo", "--bw", "10mbit"), "one of the two"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, words, said):
    """Status 2, and nothing done."""
    done = run_testbed(tmp_path, "shape", *words)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert said in done.stderr
