"""A rank that is not heard of ends the others, by name."""

import threading
import time

import pytest

from testbed.trainer.watchdog import Watchdog

pytestmark = pytest.mark.alone


class Board:
    """A store in memory."""

    def __init__(self):
        self.said = {}

    def set(self, key, value):
        self.said[key] = value.encode()

    def get(self, key):
        return self.said[key]

    def check(self, keys):
        return all(key in self.said for key in keys)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("testbed.trainer.watchdog._BEAT_SECONDS", 0.05)


def watch(board, rank, ended, where="step 7", silence=0.5):
    return Watchdog(
        board, rank, 2, silence_seconds=silence, where=lambda: where, logs="m/rank{rank}.jsonl", end=ended.append
    )


def test_silence_ends_the_run_with_name_step_and_log(capsys):
    """Rank 1 speaks once and never again."""
    board, ended = Board(), []
    board.set("alive/1", "3 step 6")
    with watch(board, 0, ended):
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.02)
    assert ended == [1]
    said = capsys.readouterr().err
    assert "rank 1 has not been heard of for 0.5 s (last: step 6); its log: m/rank1.jsonl" in said


def test_ranks_that_live_and_ranks_that_are_done_end_nobody():
    """Negative control: two that speak; and one that has said that it is done."""
    board, ended = Board(), []
    with watch(board, 0, ended, silence=2), watch(board, 1, ended, silence=2):
        time.sleep(1)
    board.set("alive/1", "9 done")
    with watch(board, 0, ended, silence=0.3):
        time.sleep(0.8)
    assert ended == []


def test_a_store_that_is_gone_ends_the_run(capsys):
    """It lived with the first rank or its agent."""
    ended, gone = [], threading.Event()

    class Gone(Board):
        def set(self, key, value):
            if gone.is_set():
                raise ConnectionError("closed")
            super().set(key, value)

    with watch(Gone(), 0, ended, silence=30):
        gone.set()
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.02)
    assert ended == [1]
    assert "the store through which the ranks met is gone" in capsys.readouterr().err
