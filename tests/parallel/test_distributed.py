"""`torch.distributed` as a transport, over gloo: what it measures, and who is named when a rank is lost.

    python -m tests.parallel.test_distributed FOLDER

is the process from which the ranks part, once everything is imported.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from testbed.errors import PeerLost
from testbed.parallel.distributed import Distributed

pytestmark = pytest.mark.alone

WORLD = 3
LATE, BUSY = 0.5, 2.0
"""Seconds: rank 1 posts late, rank 0 computes between posting and waiting."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each rank saw, by rank; rank 2 dies on the way."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, "-m", "tests.parallel.test_distributed", str(folder)], check=True, timeout=200)
    return [json.loads((folder / f"answer{rank}").read_text()) for rank in range(2)]


def test_messages_arrive_at_their_ranks(answers):
    """And an empty one is nobody's."""
    assert [each["messages"] for each in answers] == [[None, [10], [20]], [[1], None, [21]]]


def test_the_time_of_an_exchange_is_its_own(answers):
    """Until the last byte was here, however long the rank computed before it asked."""
    assert answers[0]["exposed"] < BUSY / 2
    assert LATE * 0.8 < answers[0]["seconds"] < BUSY * 0.8


def test_the_time_of_an_exchange_is_more_than_what_was_waited_for(answers):
    """Negative control: asked at once, they are the same."""
    assert answers[1]["seconds"] == pytest.approx(answers[1]["exposed"], abs=0.2)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_is_named(answers, rank):
    """While it is waited for, and again when something is posted to it; as sockets say it."""
    for said in answers[rank]["lost"]:
        assert said.startswith(f"rank {rank} lost its connection to rank 2: Connection closed by peer")
        assert "pair.cc" not in said
    assert len(answers[rank]["lost"]) == 2


def _rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    transport = Distributed(torch.device("cpu"))

    def to(*others: int) -> list[torch.Tensor | None]:
        """A byte to each, of whom it is from and for."""
        return [torch.tensor([10 * rank + o], dtype=torch.uint8) if o in others else None for o in range(WORLD)]

    transport.exchange(to(*{0, 1, 2} - {rank}), {"other": 2}).wait()  # all have met
    time.sleep(LATE if rank == 1 else 0)
    ticket = transport.exchange(to(*{0, 1, 2} - {rank}), {"other": 2})
    time.sleep(BUSY if rank == 0 else 0)
    asked = time.perf_counter()
    messages = [None if each is None else each.tolist() for each in ticket.wait()]
    answer = {"messages": messages, "seconds": ticket.seconds, "exposed": time.perf_counter() - asked, "lost": []}
    if rank == 2:
        time.sleep(0.5)  # until it is waited for
        os._exit(0)
    for _ in range(2):
        try:
            transport.exchange(to(2), {"other": 1}).wait()
            answer["lost"].append("nothing")
        except PeerLost as error:
            answer["lost"].append(str(error))
    Path(folder, f"answer{rank}").write_text(json.dumps(answer))


if __name__ == "__main__":
    torch.multiprocessing.start_processes(_rank, (sys.argv[1],), nprocs=WORLD, start_method="fork")
