"""What ranks tell one another before and beside training, through a real store: each rank a thread."""

import json
import os
import socket
import threading

import pytest
import torch
from pydantic import JsonValue

from emulation.nodes.host import free_port
from testbed.errors import RunFailed, UsageError
from testbed.parallel.greeting import Secret
from testbed.trainer.launch import _transport
from testbed.trainer.rendezvous import Meeting, first_step, same_training, store_client


@pytest.fixture
def meet(monkeypatch):
    """`meet(world, work)`: the answers of `work(meeting)` by rank, errors among them."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)

    def run(world, work):
        monkeypatch.setenv("MASTER_PORT", str(free_port(["0.0.0.0"])))
        found: list = [None] * world
        meetings = [Meeting(rank, world) for rank in range(world)]

        def one(meeting):
            try:
                found[meeting.rank] = work(meeting)
            except Exception as error:
                found[meeting.rank] = error

        threads = [threading.Thread(target=one, args=(meeting,)) for meeting in meetings]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    return run


def parts(folder, held, world=None):
    """The descriptions of checkpoints of which a rank's part is there: {step: ranks}."""
    for step, ranks in held.items():
        place = folder / f"step{step:08d}"
        place.mkdir(parents=True, exist_ok=True)
        for rank in ranks:
            text = json.dumps({"schema_version": 2, "world": world or 2})
            (place / f"rank{rank}.json").write_text(text)
    return folder


def begun(meet, folders, *, world=2, resume=True):
    """What each rank begins with, given a folder of its own or the shared one."""
    return meet(world, lambda m: first_step(m, folders[m.rank % len(folders)], resume=resume))


def test_ranks_with_folders_of_their_own_agree_on_the_newest_step_that_all_have(meet, tmp_path):
    """Rank 0 was a checkpoint ahead when it was killed."""
    ahead, behind = parts(tmp_path / "a", {3: [0], 6: [0], 9: [0]}), parts(tmp_path / "b", {3: [1], 6: [1]})
    assert begun(meet, [ahead, behind]) == [6, 6]


def test_a_shared_folder_goes_on_over_another_number_of_ranks(meet, tmp_path):
    """Of a checkpoint that is whole: step 9 lacks rank 1's part."""
    assert begun(meet, [parts(tmp_path, {6: [0, 1], 9: [0]})], world=3) == [6, 6, 6]


def test_parts_of_two_trainings_are_no_checkpoint(meet, tmp_path):
    """Step 9 was written by two ranks over that of three."""
    parts(tmp_path, {6: [0, 1, 2], 9: [0, 1, 2]}, world=3)
    parts(tmp_path, {9: [0, 1]})
    assert begun(meet, [tmp_path], world=3) == [6, 6, 6]


def test_nothing_anywhere_is_the_beginning(meet, tmp_path, capsys):
    """So that one command both begins and goes on; said once."""
    assert begun(meet, [tmp_path / "a", tmp_path / "b"]) == [None, None]
    assert capsys.readouterr().err.count("training starts from the beginning") == 1
    assert begun(meet, [tmp_path / "a"], resume=False) == [None, None]
    assert capsys.readouterr().err == ""


def test_what_cannot_be_gone_on_with_is_refused_on_every_rank(meet, tmp_path):
    """Negative controls: a folder that was lost, a new training in an old folder, ranks started differently."""
    there = parts(tmp_path / "a", {3: [0], 6: [0]})
    for error in begun(meet, [there, tmp_path / "lost"]):
        assert isinstance(error, UsageError)
        assert "no checkpoint that every rank can go on from (rank 0 has step 3, step 6; rank 1 has none)" in str(error)
    for error in begun(meet, [there, tmp_path / "lost"], resume=False):
        assert isinstance(error, UsageError)
        assert "holds checkpoints of an earlier training" in str(error)
    for error in meet(2, lambda m: first_step(m, tmp_path / "new", resume=m.rank == 0)):
        assert isinstance(error, UsageError)
        assert "--resume was given to some ranks and not to others" in str(error)


def test_ranks_of_different_trainings_are_refused(meet):
    """On every rank, in words; another text is told from other flags, and the same training is not."""
    preset: JsonValue = {"model": {"layers": 2, "width": 64}, "steps": 10}
    one: dict[str, JsonValue] = {"arm": {"codec": "latent"}, "preset": preset, "seed": 0, "data": "ab"}
    assert meet(3, lambda m: same_training(m, one)) == [None] * 3
    narrow: JsonValue = {"model": {"layers": 2, "width": 32}, "steps": 10}
    cases: list[tuple[str, JsonValue, str]] = [
        ("preset", narrow, "model.width 64 there, 32 here; start all"),
        ("seed", 1, "0 there, 1 here; start all ranks with the same flags"),
        ("data", "cd", "'ab' there, 'cd' here; the usual corpus is the standard library"),
    ]
    for key, other, said in cases:
        for error in meet(3, lambda m, key=key, other=other: same_training(m, {**one, key: other} if m.rank else one)):
            assert isinstance(error, UsageError)
            assert f"rank 1 ('here') and rank 0 ('there') train on another {key}: {said}" in str(error)


def test_a_step_is_everybodys_once_everybody_has_said_so(meet):
    """Before that none is, and then the slowest rank's."""

    def work(meeting):
        first = meeting.saved(30) if meeting.rank == 0 else None
        meeting.told("turn", "")
        second = meeting.saved(3) if meeting.rank == 1 else None
        meeting.told("next turn", "")
        return first, second, meeting.saved(33)

    (first, _, last), (_, second, _) = meet(2, work)
    assert (first, second) == (-1, 3)
    assert last in (3, 33)


def test_a_rank_that_does_not_come_is_named(meet, monkeypatch):
    """Which rank, what it was waited for, how long; and where the store should be."""
    monkeypatch.setattr("testbed.trainer.rendezvous.JOIN_SECONDS", 1.0)
    first, _ = meet(2, lambda m: m.told("checkpoints", "") if m.rank == 0 else None)
    assert isinstance(first, RunFailed)
    assert "rank 1 has not come: rank 0 has waited 1 s for its checkpoints" in str(first)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(RunFailed, match=r"no store at 127\.0\.0\.1:1, .* rank 0 or its torchrun keeps"):
        store_client()


def test_ranks_of_different_transports_are_refused(meet, tmp_path):
    """Before anything hangs; the same on every rank."""
    wanted = ["sockets", "sockets", "distributed"]
    for error in meet(3, lambda m: _transport(wanted[m.rank], m, torch.device("cpu"), None)):
        assert isinstance(error, UsageError)
        assert "rank 0 would exchange over sockets and rank 2 over gloo: give every rank --transport" in str(error)


@pytest.mark.parametrize(
    ("have", "transport", "says"),
    [
        (
            [True, True, False],
            "sockets",
            "rank {r} has {own} and rank {other} {theirs}: give every rank",
        ),
        (
            [True, True, True],
            "distributed",
            "a secret was given, and gloo cannot check it: give every rank",
        ),
    ],
)
def test_ranks_have_a_secret_or_none(meet, have, transport, says):
    """Said at once on every rank, instead of a minute's wait."""
    secret = Secret(b"a secret of these tests")
    found = meet(3, lambda m: _transport(transport, m, torch.device("cpu"), secret if have[m.rank] else None))
    for rank, error in enumerate(found):
        assert isinstance(error, UsageError)
        own, other = ("a secret", 2) if have[rank] else ("none", 0)
        theirs = "none" if have[rank] else "a secret"
        assert says.format(r=rank, own=own, other=other, theirs=theirs) in str(error)


def test_the_store_listens_at_the_meetings_address_alone(meet):
    """Where rank 0 keeps it; torchrun's agent listens everywhere."""

    def work(meeting):
        meeting.told("here", "")
        port = int(os.environ["MASTER_PORT"])
        refused = 0
        for address in ("127.0.0.1", "127.0.0.9"):
            try:
                socket.create_connection((address, port), timeout=5).close()
            except ConnectionRefusedError:
                refused += 1
        meeting.told("tried", "")
        return refused

    assert meet(2, work) == [1, 1]


def test_a_store_that_cannot_be_kept_is_said(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(RunFailed, match=r"cannot keep the store at 127\.0\.0\.1:\d+, .*: Address already in use"):
            store_client(keeps=True)
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")
    with pytest.raises(RunFailed, match="has to be an address of its machine"):
        store_client(keeps=True)
