"""How ranks find each other over TCP, and prove who they are where they share a secret.

    caller                                acceptor
    greeting, rank, nonce         ->
                                  <-      nonce, proof of the acceptor
    proof of the caller           ->

A proof is HMAC-SHA256 (RFC 2104) under the secret over the prover's role, both ranks and both nonces, so that none can
be replayed or sent back. Without a secret the greeting and the rank are all there is. What follows is neither encrypted
nor signed: a secret decides who takes part, not who listens in between.
"""

import hashlib
import hmac
import os
import secrets
import socket
import stat
import struct
import time
from contextlib import suppress
from pathlib import Path

from testbed.errors import PeerLost, UsageError

__all__ = ["CONNECT_SECONDS", "Secret", "accept", "call", "find_secret", "listen"]

CONNECT_SECONDS = 60.0
_INTRODUCTION_SECONDS = 2.0
_GREETING, _GREETING_WITH_SECRET = 0x51_0B_11_4C, 0x51_0B_11_5E
_FIRST = struct.Struct("<II")
_NONCE_BYTES, _PROOF_BYTES = 16, 32
SECRET_VARIABLE = "TESTBED_SECRET"
_SHORTEST, _LONGEST = 16, 4096


class Secret:
    """What ranks prove to each other that they know; never shown, sent or stored."""

    def __init__(self, words: bytes) -> None:
        self._key = hashlib.sha256(words).digest()

    def proof(self, role: str, caller: int, acceptor: int, nonces: bytes) -> bytes:
        """Of who has this role between these two ranks."""
        said = b"testbed rank %s\0%d\0%d\0" % (role.encode(), caller, acceptor)
        return hmac.digest(self._key, said + nonces, "sha256")

    def __repr__(self) -> str:
        return "Secret(…)"


def find_secret(file: str | None) -> Secret | None:
    """From a file, or else the environment variable TESTBED_SECRET; None where neither is given. At least 16 bytes."""
    if file is None:
        words, where = os.environ.get(SECRET_VARIABLE, "").encode("utf-8", "surrogateescape"), f"${SECRET_VARIABLE}"
        if not words:
            return None
    else:
        words, where = _read(Path(file)), file
    words = words.strip()
    if not _SHORTEST <= len(words) <= _LONGEST:
        raise UsageError(
            f"the secret in {where} has {len(words)} bytes; allowed are {_SHORTEST} to {_LONGEST}, for example those "
            "of: openssl rand -hex 32"
        )
    return Secret(words)


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"--secret-file {path} is no regular file; make one: openssl rand -hex 32 > {path}")
            return file.read(_LONGEST + 64)
    except OSError as error:
        raise UsageError(
            f"--secret-file {path} cannot be read: {error.strerror}; make one: openssl rand -hex 32 > {path}"
        ) from None


def listen(address: str, port: int = 0, *, backlog: int) -> socket.socket:
    """A socket that listens at this address alone, of whichever family it is; port 0: one of the kernel's choice."""
    return socket.create_server((address, port), family=_family(address), backlog=backlog)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def call(rank: int, other: int, address: tuple[str, int], own: str, secret: Secret | None = None) -> socket.socket:
    """A connection to another rank, from the address `own`; `PeerLost` where who answers does not know the secret."""
    connection = _connect(address, own)
    if secret is None:
        connection.sendall(_FIRST.pack(_GREETING, rank))
        return connection
    try:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        connection.settimeout(CONNECT_SECONDS)  # it may be busy with strangers
        connection.sendall(_FIRST.pack(_GREETING_WITH_SECRET, rank) + nonce)
        answer = _receive(connection, _NONCE_BYTES + _PROOF_BYTES)
        nonces = nonce + answer[:_NONCE_BYTES]
        if not hmac.compare_digest(answer[_NONCE_BYTES:], secret.proof("acceptor", rank, other, nonces)):
            raise PeerLost(
                f"rank {rank} has called rank {other} at {address[0]}:{address[1]}, and what answers there does not "
                "know the secret: give every rank the same --secret-file"
            )
        connection.sendall(secret.proof("caller", rank, other, nonces))
        connection.settimeout(None)
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise PeerLost(f"rank {rank} has called rank {other}, which hung up: {error.strerror or error}") from None
        raise
    return connection


def accept(
    rank: int, expected: set[int], listener: socket.socket, secret: Secret | None = None
) -> dict[int, socket.socket]:
    """The connections of those that call, by rank; `PeerLost` if one of them has not within a minute, however many
    strangers do."""
    peers: dict[int, socket.socket] = {}
    deadline, strangers = time.monotonic() + CONNECT_SECONDS, 0
    try:
        while expected - peers.keys():
            connection = _accepted(listener, deadline)
            if connection is None:
                raise PeerLost(
                    f"rank {rank} has waited {CONNECT_SECONDS:g} s to be called by ranks "
                    f"{sorted(expected - peers.keys())}; {strangers} others have called"
                )
            other = _introduced(connection, rank, expected - peers.keys(), secret)
            if other is None:
                connection.close()  # not one of ours: a port scan, a stray client, who does not know the secret
                strangers += 1
            else:
                peers[other] = connection
    except BaseException:
        for connection in peers.values():
            connection.close()
        raise
    return peers


def _accepted(listener: socket.socket, deadline: float) -> socket.socket | None:
    """The next that calls; None if nobody has by the deadline, or others stand in the queue still."""
    left = deadline - time.monotonic()
    listener.settimeout(max(0.001, left))
    with suppress(TimeoutError):
        return listener.accept()[0] if left > 0 else None
    return None


def _connect(address: tuple[str, int], own: str) -> socket.socket:
    deadline = time.monotonic() + CONNECT_SECONDS
    source = (own, 0) if _family(own) == _family(address[0]) else None
    while True:
        try:
            return socket.create_connection(address[:2], timeout=CONNECT_SECONDS, source_address=source)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _introduced(connection: socket.socket, own: int, expected: set[int], secret: Secret | None) -> int | None:
    """The rank that called, or None if what called does not speak as one of these ranks does."""
    connection.settimeout(_INTRODUCTION_SECONDS)
    with suppress(OSError):
        greeting, rank = _FIRST.unpack(_receive(connection, _FIRST.size))
        if greeting != (_GREETING if secret is None else _GREETING_WITH_SECRET) or rank not in expected:
            return None
        if secret is not None:
            nonces = _receive(connection, _NONCE_BYTES) + secrets.token_bytes(_NONCE_BYTES)
            connection.sendall(nonces[_NONCE_BYTES:] + secret.proof("acceptor", rank, own, nonces))
            proof = _receive(connection, _PROOF_BYTES)
            if not hmac.compare_digest(proof, secret.proof("caller", rank, own, nonces)):
                return None
        connection.settimeout(None)
        return rank
    return None


def _receive(connection: socket.socket, count: int) -> bytes:
    """So many bytes, or OSError."""
    data, deadline = b"", time.monotonic() + (connection.gettimeout() or CONNECT_SECONDS)
    while len(data) < count:
        if time.monotonic() > deadline:  # byte by byte is no introduction either
            raise TimeoutError("no answer")
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("connection closed")
        data += piece
    return data
