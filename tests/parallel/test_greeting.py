"""Who takes part: ranks that know the secret, and nobody else, whatever strangers do."""

import os
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest
import torch

from testbed.errors import PeerLost, UsageError
from testbed.parallel import greeting
from testbed.parallel.greeting import Secret, find_secret
from testbed.parallel.transport import Sockets
from tests.ranks import listeners

OURS, OTHER = Secret(b"what these ranks know"), Secret(b"what others know")


class Meeting:
    """Two ranks that meet in threads; what each got or raised."""

    def __init__(self, secrets: list[Secret | None], before=lambda _: None) -> None:
        listening = listeners(2)
        self.addresses = [listener.getsockname() for listener in listening]
        self.found: dict[int, Sockets | BaseException] = {}

        def one(rank: int) -> None:
            try:
                self.found[rank] = Sockets.connect(rank, self.addresses, listener=listening[rank], secret=secrets[rank])
            except BaseException as error:
                self.found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
        threads[0].start()
        before(self.addresses)
        threads[1].start()
        for thread in threads:
            thread.join(20)

    def close(self) -> None:
        for found in self.found.values():
            if isinstance(found, Sockets):
                found.close()


@pytest.fixture
def meet():
    """`meet(secrets, before)`: see `Meeting`."""
    made: list[Meeting] = []

    def meet(*given) -> Meeting:
        made.append(Meeting(*given))
        return made[-1]

    yield meet
    for each in made:
        each.close()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A minute is long."""
    monkeypatch.setattr(greeting, "CONNECT_SECONDS", 3.0)


@pytest.mark.parametrize("secret", [None, OURS])
def test_ranks_meet_and_so_do_their_lanes(meet, secret):
    met = meet([secret, secret])
    answers = {}

    def work(rank: int) -> None:
        for transport in (met.found[rank], met.found[rank].lane()):
            outgoing: list[torch.Tensor | None] = [None, None]
            outgoing[1 - rank] = torch.full((3,), rank + 1, dtype=torch.uint8)
            answers[rank] = transport.exchange(outgoing, {"other": 3}).wait()[1 - rank].tolist()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == {0: [2, 2, 2], 1: [1, 1, 1]}


def test_a_lane_asks_for_the_secret_again(meet):
    met = meet([OURS, OURS])
    met.found[1]._secret = OTHER
    errors: dict[int, BaseException] = {}

    def work(rank: int) -> None:
        try:
            met.found[rank].lane()
        except PeerLost as error:
            errors[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert "does not know the secret" in str(errors[1])
    assert "has waited" in str(errors[0])


@pytest.mark.parametrize(
    ("secrets", "first", "second"),
    [
        ([OURS, OTHER], "has waited 3 s to be called by ranks [1]; 1 others have called", "does not know the secret"),
        ([OURS, None], "has waited 3 s to be called by ranks [1]; 1 others have called", None),
        ([None, OURS], "has waited 3 s", "hung up"),
    ],
)
def test_ranks_of_other_secrets_do_not_meet(meet, secrets, first, second):
    """A rank without a secret may think that it has met: it only speaks to who hung up."""
    met = meet(secrets)
    assert isinstance(met.found[0], PeerLost)
    assert first in str(met.found[0])
    if second is not None:
        assert isinstance(met.found[1], PeerLost)
        assert second in str(met.found[1])


def _say(*pieces: bytes):
    """A stranger who says this, and reflects whatever it is answered."""

    def stranger(addresses) -> None:
        with socket.create_connection(addresses[0][:2], timeout=10) as sock, suppress(OSError):
            for piece in pieces:
                sock.sendall(piece)
            said = sock.recv(4096)
            sock.sendall(said[-32:])
            while sock.recv(4096):
                pass

    return stranger


FIRST = struct.pack("<II", greeting._GREETING_WITH_SECRET, 1)


@pytest.mark.parametrize("secret", [None, OURS])
@pytest.mark.parametrize(
    "stranger",
    [
        _say(b"GET / HTTP/1.1\r\n\r\n"),
        _say(FIRST + bytes(16)),  # the acceptor's own proof is sent back
        _say(FIRST + bytes(16) + bytes(32)),
        _say(struct.pack("<II", greeting._GREETING, 7)),
        _say(struct.pack("<II", greeting._GREETING_WITH_SECRET, 0) + bytes(16)),
        _say(b"\x4c"),
    ],
)
def test_strangers_are_turned_away_and_take_no_ranks_place(meet, secret, stranger):
    met = meet([secret, secret], stranger)
    assert isinstance(met.found[0], Sockets), met.found[0]
    assert list(met.found[0].peers) == [1]
    assert isinstance(met.found[1], Sockets)


def test_no_proof_is_worth_anything_again(meet):
    """Not to another rank, not in the other role, not with other nonces."""
    proofs = {
        OURS.proof(role, caller, acceptor, nonces)
        for role in ("caller", "acceptor")
        for caller, acceptor in ((1, 0), (2, 0), (2, 1), (12, 0), (1, 20))
        for nonces in (bytes(32), bytes(31) + b"1")
    }
    assert len(proofs) == 20
    assert OTHER.proof("caller", 1, 0, bytes(32)) not in proofs


def test_strangers_do_not_prolong_the_wait():
    """However many call, and however slowly they speak."""
    listening = listeners(1)
    address, stop = listening[0].getsockname(), threading.Event()

    def pester() -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection(address, timeout=1) as sock:
                for byte in FIRST:
                    sock.sendall(bytes([byte]))
                    if stop.wait(0.5):
                        break

    threads = [threading.Thread(target=pester) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    try:
        with pytest.raises(PeerLost, match=r"has waited 3 s to be called by ranks \[1\]"):
            greeting.accept(0, {1}, listening[0], OURS)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
        listening[0].close()
    assert time.monotonic() - begun < 3 + 2 * greeting._INTRODUCTION_SECONDS + 1


def test_a_secret_is_never_shown():
    assert "know" not in repr(OURS) + str(OURS) + f"{vars(OURS)}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (b"short", "has 5 bytes; allowed are 16 to 4096, for example those of: openssl rand -hex 32"),
        (b"   \n", "has 0 bytes"),
        (b"x" * 5000, "bytes; allowed are 16 to 4096"),
        (None, "cannot be read: No such file or directory; make one: openssl rand -hex 32 >"),
        ("folder", "cannot be read: Is a directory"),
        ("pipe", "is no regular file"),
    ],
)
def test_a_secret_that_is_none_is_refused(tmp_path, words, says):
    file = tmp_path / "secret"
    if words == "folder":
        file.mkdir()
    elif words == "pipe":
        os.mkfifo(file)
    elif words is not None:
        file.write_bytes(words)
    with pytest.raises(UsageError) as refused:
        find_secret(str(file))
    assert says in str(refused.value)


def test_a_secret_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("TESTBED_SECRET", raising=False)
    assert find_secret(None) is None
    monkeypatch.setenv("TESTBED_SECRET", "from the environment")
    file = tmp_path / "secret"
    file.write_text("from the environment\n")  # as echo ends it
    proofs = [secret.proof("caller", 1, 0, b"") for secret in (find_secret(None), find_secret(str(file))) if secret]
    assert len(proofs) == 2
    assert proofs[0] == proofs[1]
    monkeypatch.setenv("TESTBED_SECRET", "short")
    with pytest.raises(UsageError, match=r"the secret in \$TESTBED_SECRET has 5 bytes"):
        find_secret(None)
