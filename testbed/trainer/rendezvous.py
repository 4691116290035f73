"""What the ranks of torchrun tell one another through the store at MASTER_ADDR, not over the links."""

import json
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import JsonValue

from testbed.errors import RunFailed, UsageError
from testbed.trainer import checkpoint

__all__ = ["JOIN_SECONDS", "Meeting", "first_step", "same_training", "store_client"]

JOIN_SECONDS = 900.0
"""A rank may check the sums of a large corpus before it comes."""
_HEARD_SECONDS = 5.0
"""Whoever keeps the store waits so long for the others to have heard what all said."""


def store_client(*, keeps: bool = False) -> Any:
    """A new client of the store (clients are not thread-safe). `keeps`: this process also hosts the store."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = timedelta(seconds=JOIN_SECONDS)
    own = _listening(address, port) if keeps else None
    try:
        store = dist.TCPStore(address, port, is_master=keeps, timeout=limit, master_listen_fd=own)
        return dist.PrefixStore("testbed", store)
    except dist.DistError as error:
        raise RunFailed(
            f"no store at {address}:{port}, where the ranks meet and which rank 0 or its torchrun keeps: "
            f"{str(error).splitlines()[0]}"
        ) from None


def _listening(address: str, port: int) -> int:
    """A descriptor that listens at this address alone, where torch's store would listen at all of the machine's."""
    try:
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family).detach()  # the store closes it
    except OSError as error:
        raise RunFailed(
            f"rank 0 cannot keep the store at {address}:{port}, where the ranks meet: {error.strerror}; MASTER_ADDR "
            "has to be an address of its machine, and the port free"
        ) from None


class Meeting:
    """One rank's part in it. The store is torchrun's agent's, or rank 0's own."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        own = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self._keeps = own and rank == 0
        self.store = store_client(keeps=self._keeps)

    def told(self, what: str, own: str) -> list[str]:
        """What every rank says of `what`, by rank, once all have."""
        self.store.set(f"{what}/{self.rank}", own)
        found = [self._told(what, other) for other in range(self.world)]
        self.store.set(f"{what}/heard/{self.rank}", "")
        if self._keeps:  # whoever leaves over what was told takes the store along: not before the others know it too
            with suppress(dist.DistError):
                heard = [f"{what}/heard/{other}" for other in range(self.world)]
                self.store.wait(heard, timedelta(seconds=_HEARD_SECONDS))
        return found

    def _told(self, what: str, other: int) -> str:
        try:
            return self.store.get(f"{what}/{other}").decode()
        except dist.DistStoreError:
            raise RunFailed(
                f"rank {other} has not come: rank {self.rank} has waited {JOIN_SECONDS:g} s for its {what}; was it "
                "started, with the same MASTER_ADDR and MASTER_PORT, and what did it say?"
            ) from None
        except dist.DistError:
            raise RunFailed(f"rank {self.rank} waits for rank {other}'s {what}, and the store is gone") from None

    def saved(self, step: int) -> int:
        """Say that this rank's part of a checkpoint is on disk: the newest step of which every rank said so, or −1."""
        self.store.set(f"saved/{self.rank}", str(step))
        keys = [f"saved/{rank}" for rank in range(self.world)]
        return min(int(self.store.get(key)) for key in keys) if self.store.check(keys) else -1


def same_training(meeting: Meeting, own: Mapping[str, JsonValue]) -> None:
    """Raise UsageError on every rank unless all have begun the same one (`checkpoint.identity`)."""
    told = [json.loads(text) for text in meeting.told("training", json.dumps(own))]
    for rank, theirs in enumerate(told):
        for key, first in told[0].items():
            if theirs[key] != first:
                hint = (
                    "the usual corpus is the standard library of each rank's Python: run the same version everywhere, "
                    "or prepare one corpus and copy it"
                    if key == "data"
                    else "start all ranks with the same flags and files"
                )
                what = checkpoint.difference(first, theirs[key])
                raise UsageError(f"rank {rank} ('here') and rank 0 ('there') train on another {key}: {what}; {hint}")


def first_step(meeting: Meeting, folder: Path, *, resume: bool) -> int | None:
    """The step to go on from, the same on every rank: the newest of which each has its part. None is the beginning."""
    held = sorted(checkpoint.steps_held(folder, meeting.rank, meeting.world))
    own = {"resume": resume, "any": bool(checkpoint.steps_seen(folder)), "held": held}
    told = [json.loads(text) for text in meeting.told("checkpoints", json.dumps(own))]
    if any(other["resume"] != resume for other in told):
        raise UsageError("--resume was given to some ranks and not to others: start them all alike")
    found = any(other["any"] for other in told)
    if found and not resume:
        raise UsageError(
            f"{folder} holds checkpoints of an earlier training: --resume goes on from them, "
            "--out DIR begins in another folder"
        )
    if not found:
        if resume and meeting.rank == 0:
            print(f"no rank has a checkpoint in {folder}: training starts from the beginning", file=sys.stderr)
        return None
    common = set.intersection(*({tuple(each) for each in other["held"]} for other in told))
    if not common:
        has = "; ".join(
            f"rank {rank} has {', '.join(f'step {step}' for step, _ in other['held']) or 'none'}"
            for rank, other in enumerate(told)
        )
        raise UsageError(
            f"{folder} holds no checkpoint that every rank can go on from ({has}); --out DIR begins in another folder"
        )
    return max(step for step, _ in common)
