"""The player alone, on a backend that only writes down what it is told: order, times, records, errors.

What a kernel makes of it is tested elsewhere.
"""

import json
import threading
import time
from collections.abc import Sequence

import pytest

from emulation.errors import EmulationError, LinkError, UsageError
from emulation.player import Player
from emulation.spec.events import EventFacts
from emulation.spec.network import Link, Network, Node, star
from emulation.spec.schedule import Change, Fault, Schedule


@pytest.fixture(autouse=True)
def _by_the_kernel(request, monkeypatch):
    """Changes come quickly here to save time; what is a relay's is tested in test_quick.py."""
    if request.module.__name__ == __name__:
        monkeypatch.setattr(Schedule, "quick", lambda _: False)


class Recorder:
    """Remembers every call and when; `slow` is how long a change takes, in seconds. `forgets` reads back wrong."""

    def __init__(self, network: Network, slow: float = 0.0) -> None:
        self.network = network
        self.slow = slow
        self.calls: list[tuple] = []
        self.refuses = ""
        self.forgets = ""
        self.checks = 0

    def _note(self, *call) -> None:
        if call[0] == self.refuses:
            raise OSError(f"no {call[0]} today")
        self.calls.append(call)

    def change(self, network: Network, at_ns: int | None = None) -> None:
        time.sleep(self.slow)
        self._note("change", network.link.rate_bps, *([] if at_ns is None else [at_ns - time.monotonic_ns()]))
        self.network = network

    def follow(self, highest: Network | None) -> None:
        self._note("follow", highest and highest.link_of(highest.nodes[0]).rate_bps)

    def check_readback(self) -> None:
        self.checks += 1
        if self.calls[-1][0] == self.forgets:
            time.sleep(0.1)
            raise LinkError("the kernel has something else.")

    def link_down(self, node: Node) -> None:
        self._note("down", node.index)

    def link_up(self, node: Node) -> None:
        self._note("up", node.index)

    def partition(self, groups: Sequence[Sequence[Node]]) -> None:
        self._note("partition", [[node.index for node in group] for group in groups])

    def heal(self) -> None:
        self._note("heal")

    def freeze(self, node: Node) -> None:
        self._note("freeze", node.index)

    def thaw(self, node: Node) -> None:
        self._note("thaw", node.index)

    def kill(self, node: Node) -> None:
        self._note("kill", node.index)

    def restart(self, node: Node) -> None:
        self._note("restart", node.index)


def recorder(**options) -> Recorder:
    return Recorder(star(4, Link(rate_bps=100_000_000), "nic"), **options)


def bw(at: float, rate: int) -> Change:
    return Change(at_seconds=at, settings={"rate_bps": rate})


def play(player: Player, seconds: float = 10) -> None:
    player.start()
    deadline = time.monotonic() + seconds
    while not player.finished and time.monotonic() < deadline:
        time.sleep(0.005)
    assert player.finished


def test_every_kind_of_event_reaches_the_backend_in_order():
    backend = recorder()
    schedule = Schedule(
        events=(
            bw(0, 50_000_000),
            Fault(at_seconds=0.01, kind="down", nodes=(1, 2)),
            Fault(at_seconds=0.02, kind="up", nodes=(1,)),
            Fault(at_seconds=0.02, kind="partition", groups=((0, 1), (2, 3))),
            Fault(at_seconds=0.02, kind="heal"),
            Fault(at_seconds=0.03, kind="freeze", nodes=(0,)),
            Fault(at_seconds=0.03, kind="thaw", nodes=(0,)),
            Fault(at_seconds=0.03, kind="kill", nodes=(3,)),
            Fault(at_seconds=0.04, kind="restart", nodes=(3,)),
        )
    )
    with Player(backend, schedule, programs=backend) as player:
        play(player)
    assert backend.calls == [
        ("change", 50_000_000), ("down", 1), ("down", 2), ("up", 1), ("partition", [[0, 1], [2, 3]]), ("heal",),
        ("freeze", 0), ("thaw", 0), ("kill", 3), ("restart", 3),
    ]  # fmt: skip
    assert backend.network.link.rate_bps == 50_000_000
    assert len(player.events) == 9


@pytest.mark.parametrize(("forgets", "proven"), [("change", 0), ("down", 1)])
def test_what_did_not_take_effect_ends_playing(forgets, proven):
    """Though another event has fallen due meanwhile; it is not recorded."""
    backend = recorder()
    backend.forgets = forgets
    events = (bw(0, 20_000_000), Fault(at_seconds=0.01, kind="down", nodes=(1,)), bw(0.02, 30_000_000))
    player = Player(backend, Schedule(events=events))
    play(player)
    with pytest.raises(EmulationError, match=r"the schedule stopped at .*: the kernel has something else"):
        player.close()
    assert len(player.events) == proven
    assert backend.checks == proven + 1


def test_applied_is_when_the_kernel_had_it_and_not_when_that_was_read():
    backend = recorder()
    backend.check_readback = lambda: time.sleep(0.5)
    with Player(backend, Schedule(events=(bw(0, 20_000_000),))) as player:
        play(player)
    assert player.events[0]["applied_seconds"] < 0.4


def test_events_happen_at_their_times_and_are_recorded():
    seen: list[EventFacts] = []
    with Player(
        recorder(), Schedule(events=(bw(0.05, 20_000_000), bw(0.15, 30_000_000))), on_event=seen.append
    ) as player:
        play(player)
    told = json.loads(json.dumps(player.events))
    assert [event["at_seconds"] for event in told] == [0.05, 0.15]
    assert [event["what"] for event in told] == ["all links: bw 20mbit", "all links: bw 30mbit"]
    for event in told:
        assert event["at_seconds"] <= event["applied_seconds"] < event["at_seconds"] + 2
    assert seen == player.events


def test_changes_at_one_time_are_one_change_and_two_records():
    backend = recorder()
    with Player(backend, Schedule(events=(bw(0.01, 20_000_000), bw(0.01, 30_000_000)))) as player:
        play(player)
    assert backend.calls == [("change", 30_000_000)]
    first, second = player.events
    assert first["applied_seconds"] == second["applied_seconds"]


def test_a_late_player_catches_up_and_does_not_reorder_faults():
    backend = recorder(slow=0.3)
    events = tuple(bw(at, round(10_000_000 + 100 * at)) for at in (0, 0.11, 0.12, 0.13, 0.14))
    schedule = Schedule(events=(*events, Fault(at_seconds=0.15, kind="heal"), bw(0.16, 20_000_000)))
    with Player(backend, schedule) as player:
        play(player)
    assert backend.calls == [("change", 10_000_000), ("change", 10_000_014), ("heal",), ("change", 20_000_000)]
    assert [event["at_seconds"] for event in player.events] == [0, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16]
    applied = [event["applied_seconds"] for event in player.events]
    assert applied == sorted(applied)
    assert applied[-1] >= 0.9


def test_an_endless_schedule_ends_when_closed():
    player = Player(recorder(), Schedule(events=(bw(0, 20_000_000), bw(0.01, 30_000_000)), repeat_seconds=0.02))
    player.start()
    time.sleep(0.2)
    assert not player.finished
    player.close()
    assert player.finished
    assert len(player.events) >= 3
    assert threading.current_thread() is threading.main_thread()


def test_closing_does_not_wait_for_events_to_come():
    before = time.monotonic()
    with Player(recorder(), Schedule(events=(bw(3600, 20_000_000),))) as player:
        player.start()
    assert time.monotonic() - before < 5
    assert player.events == []


def test_a_player_that_never_started_closes():
    player = Player(recorder(), Schedule(events=(bw(0, 20_000_000),)))
    player.close()
    assert not player.finished


def test_a_player_plays_once():
    with Player(recorder(), Schedule()) as player:
        play(player)
        with pytest.raises(EmulationError, match="plays once"):
            player.start()


def failing(kind: str) -> Player:
    backend = recorder()
    backend.refuses = kind
    schedule = Schedule(
        events=(bw(0, 20_000_000), Fault(at_seconds=0.01, kind="kill", nodes=(2,)), bw(0.02, 30_000_000))
    )
    return Player(backend, schedule)


def test_an_error_ends_playing_and_is_raised_in_the_caller():
    player = failing("kill")
    play(player)
    for ask in (player.check, player.close):
        with pytest.raises(EmulationError, match=r"stopped at 0.01 s \(node 2: kill\): no kill today") as raised:
            ask()
    assert isinstance(raised.value.__cause__, OSError)
    assert len(player.events) == 1


def test_leaving_the_block_raises_it_too():
    with pytest.raises(EmulationError, match="no change today"), failing("change") as player:
        play(player)


def test_an_error_in_the_block_is_not_hidden_by_the_players():
    def body():
        with failing("change") as player:
            play(player)
            raise KeyError("mine")

    with pytest.raises(KeyError) as raised:
        body()
    assert "no change today" in raised.value.__notes__[0]


def test_a_callbacks_error_counts():
    def refuse(_record):
        raise ValueError("full disk")

    player = Player(recorder(), Schedule(events=(bw(0, 20_000_000),)), on_event=refuse)
    play(player)
    with pytest.raises(EmulationError, match="full disk"):
        player.check()


def test_what_cannot_be_played_is_refused_before_it_starts():
    restart = Schedule(traces=(Schedule(events=(Fault(at_seconds=1, kind="restart", nodes=(0,)),)),))
    with pytest.raises(UsageError, match="only programs under exec"):
        Player(recorder(), restart)
    Player(recorder(), restart, programs=recorder())
    with pytest.raises(UsageError, match="node 9"):
        Player(recorder(), Schedule(events=(Fault(at_seconds=1, kind="kill", nodes=(9,)),)))
