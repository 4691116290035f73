"""`testbed train`: one arm, one rank, started by torchrun on real machines (or several on one)."""

import json
import os
import socket
import sys
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from testbed.config import STANDARD_ARMS, Preset, load_toml
from testbed.data.source import open_source
from testbed.errors import UsageError
from testbed.parallel.distributed import Distributed
from testbed.parallel.transport import Sockets, Transport
from testbed.runs.settings import standard_arms
from testbed.trainer import Trainer, warm_start

__all__ = ["train"]

_PRINT_EVERY = 10


def train(arm: str, preset: str, seed: int, steps: int | None, transport: Literal["sockets", "distributed"]) -> int:
    """Train and print a JSON line every few steps; 0 when done."""
    if "RANK" not in os.environ:
        raise UsageError("no RANK is set: start it with torchrun, as in: torchrun --nproc-per-node 4 -m testbed train")
    if arm not in STANDARD_ARMS:
        raise UsageError(f"'{arm}' is no arm; known are {', '.join(STANDARD_ARMS)}")
    chosen = load_toml(Preset, "presets", preset)
    device = _device()
    mix = open_source(chosen.data, seed=seed, chunks=chosen.task_chunks)
    link = _sockets() if transport == "sockets" else _distributed(device)
    if chosen.context % link.world:
        raise UsageError(f"{link.world} ranks cannot share {chosen.context} tokens evenly")
    warm = warm_start(chosen, mix, link, seed=seed, device=device)
    wanted = next(each for each in standard_arms(chosen) if each.name == arm)
    trainer = Trainer(chosen, wanted, mix, link, seed=seed, warm=warm, device=device)
    for _ in range(chosen.steps if steps is None else steps):
        result = trainer.step()
        if trainer.sync_due:
            trainer.average_weights()
        if trainer.index % _PRINT_EVERY == 0:
            loss = result.loss_sum / max(1, result.tokens)
            line = {
                "rank": trainer.rank,
                "step": trainer.index,
                "loss": loss,
                "step_seconds": result.step_seconds,
            }
            sys.stdout.write(json.dumps(line) + "\n")  # in one piece: ranks share the terminal
            sys.stdout.flush()
    link.close()
    return 0


def _device() -> torch.device:
    """This rank's GPU where there is one (shared if there are more ranks than GPUs), else one thread of the CPU."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _sockets() -> Sockets:
    """Ranks meet through torch's store at MASTER_ADDR, where each says at which address it listens."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # without torchrun's agent, rank 0 keeps the store
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world,
        is_master=ours and rank == 0,
        timeout=timedelta(seconds=60),
    )
    with socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))) as probe:
        own = probe.getsockname()[0]  # the address that faces the others
    listener = socket.create_server((own, 0), backlog=world)
    store.set(f"testbed/{rank}", f"{own} {listener.getsockname()[1]}")
    addresses = []
    for other in range(world):
        address, text = store.get(f"testbed/{other}").decode().split()
        addresses.append((address, int(text)))
    return Sockets.connect(rank, addresses, listener=listener)


def _distributed(device: torch.device) -> Transport:
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Distributed(device)
