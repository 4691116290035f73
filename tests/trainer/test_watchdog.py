"""A rank that is not heard of ends the others, by name; one that comes late or is done early ends nobody."""

import threading
import time

import pytest

from testbed.trainer.watchdog import Clock, Watchdog

pytestmark = pytest.mark.waits

SILENCE = 0.6


class Board:
    """A store in memory; gone once it is told so."""

    def __init__(self):
        self.said = {}
        self.gone = threading.Event()

    def set(self, key, value):
        if self.gone.is_set():
            raise ConnectionError("closed")
        self.said[key] = value.encode()

    def get(self, key):
        return self.said[key]

    def check(self, keys):
        return all(key in self.said for key in keys)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("testbed.trainer.watchdog._BEAT_SECONDS", 0.05)


class Rank(threading.Thread):
    """A rank that works for so long, or until its watchdog ends it, and then ends well or with an error."""

    def __init__(self, board, rank, *, works=0.0, fails=False):
        super().__init__(name=f"rank {rank}")
        self.board, self.rank, self.works, self.fails = board, rank, works, fails
        self.ended: list[int] = []
        self.left = 0.0
        self.start()

    def run(self):
        over = threading.Event()

        def end(status: int) -> None:
            self.ended.append(status)
            over.set()

        try:
            with Watchdog(
                self.board, self.rank, 2, silence_seconds=SILENCE, where=lambda: "step 7", logs="m/rank{rank}.jsonl",
                end=end,
            ):  # fmt: skip
                over.wait(self.works)
                if self.fails or self.ended:
                    raise SystemExit(1)
        except SystemExit:
            pass
        self.left = time.monotonic()


def ended(*ranks):
    """What each rank's watchdog ended it with."""
    for rank in ranks:
        rank.join(60)
        assert not rank.is_alive()
    return [rank.ended for rank in ranks]


def test_silence_ends_the_run_with_name_step_and_log(capsys):
    """Rank 1 speaks once and never again."""
    board = Board()
    board.set("alive/1", "3 step 6")
    assert ended(Rank(board, 0, works=30)) == [[1]]
    said = capsys.readouterr().err
    assert "rank 0, step 7: rank 1 has not been heard of for 0.6 s (last: step 6); its log: m/rank1.jsonl" in said


def test_a_rank_that_comes_late_is_waited_for():
    """Silence counts from a rank's first word; the test above is what happens after it."""
    board = Board()
    first = Rank(board, 0, works=6 * SILENCE)
    time.sleep(3 * SILENCE)
    assert ended(first, Rank(board, 1, works=3 * SILENCE)) == [[], []]


def test_a_rank_that_is_done_ends_nobody():
    """Rank 0 validates far longer than the silence that is allowed."""
    board = Board()
    first, second = Rank(board, 0, works=4 * SILENCE), Rank(board, 1)
    assert ended(first, second) == [[], []]
    assert first.left - second.left > 2 * SILENCE
    assert board.said["alive/1"].endswith(b" done")


def test_the_first_rank_stays_until_all_are_done():
    """Its process, or its agent, keeps the store that the others still speak to."""
    board = Board()
    first, second = Rank(board, 0), Rank(board, 1, works=4 * SILENCE)
    assert ended(first, second) == [[], []]
    assert 0 <= first.left - second.left < SILENCE


def test_a_rank_that_failed_is_not_done(capsys):
    """Negative control: it says nothing on its way out, and the other ends."""
    board = Board()
    assert ended(Rank(board, 0, works=0.2, fails=True), Rank(board, 1, works=30)) == [[], [1]]
    assert "rank 0 has not been heard of" in capsys.readouterr().err


def test_a_rank_that_dies_while_another_is_done_ends_it(capsys):
    """Whoever waits for the end is still listening."""
    board = Board()
    board.set("alive/1", "3 step 6")
    assert ended(Rank(board, 0)) == [[1]]
    assert "rank 0, done: rank 1 has not been heard of" in capsys.readouterr().err


def test_a_store_that_is_gone_ends_the_run_unless_it_is_done(capsys):
    """It lived with the first rank or its agent."""
    for works, found in ((30, [1]), (0, [])):
        board = Board()
        rank = Rank(board, 0, works=works)
        time.sleep(0.3)
        board.gone.set()
        assert ended(rank) == [found]
        assert ("the store through which the ranks met is gone" in capsys.readouterr().err) == bool(found)


class Silent(Board):
    """A store that does not answer any more, and raises nothing."""

    def set(self, key, value):
        if self.gone.is_set():
            threading.Event().wait(30)
        super().set(key, value)


def test_a_store_that_goes_without_a_word_ends_the_run(capsys):
    """No call into it comes back; the clock calls nobody."""
    board = Silent()
    rank = Rank(board, 1, works=30)
    time.sleep(SILENCE / 2)
    started = time.monotonic()
    board.gone.set()
    assert ended(rank) == [[1]]
    assert SILENCE / 2 < time.monotonic() - started < 20 * SILENCE
    assert "rank 1, step 7: the store through which the ranks met has not answered for 0.6 s" in capsys.readouterr().err


def test_a_clock_counts_no_time_in_which_it_stood_still(monkeypatch):
    """As after SIGSTOP and SIGCONT: what it watches stood still too."""
    now = [100.0]
    monkeypatch.setattr("testbed.trainer.watchdog.time.monotonic", lambda: now[0])
    fired: list[int] = []
    clock = Clock(0, lambda: "step 7", fired.append)
    clock.expect(1.0, "gone")
    now[0] += 60.0
    time.sleep(0.3)
    assert fired == []
    for _ in range(120):
        now[0] += 0.05
        time.sleep(0.02)
    clock.close()
    assert fired == [1]
