"""Other people's ring attention on the same q, k and v, over gloo between processes of their own.

What is handed over is rotated already and whole; what comes back is whole too: out, dq, dk, dv by peer, or the reason
why a peer cannot be asked. Shape letters as in `testbed.parallel.attention`.

    python -m tests.parallel.peers FOLDER WORLD

is the process in which they run: it imports everything once and then forks.
"""

import contextlib
import importlib
import os
import subprocess
import sys
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from testbed.parallel.layout import Layout

__all__ = ["ask_peers"]

Answer = tuple[Tensor, Tensor, Tensor, Tensor]
"""out, dq, dk, dv."""
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def ask_peers(inputs: dict[str, tuple[Tensor, ...]], world: int) -> dict[str, dict[str, Answer] | str]:
    """What each peer makes of every case of `inputs` by name: (q, k, v, d_out), whole sequences (B, heads, T, D).

    A string instead of answers is the reason why there are none.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        torch.save(inputs, place / "inputs")
        subprocess.run([sys.executable, "-m", "tests.parallel.peers", folder, str(world)], check=True, timeout=280)
        by_rank = [torch.load(place / f"answers {rank}") for rank in range(world)]
    answers: dict[str, dict[str, Answer] | str] = {}
    for peer, first in by_rank[0].items():
        if isinstance(first, str):
            answers[peer] = first
            continue
        layout = Layout("zigzag" if "balanced" in peer else "contiguous", world)
        answers[peer] = {name: _whole([each[peer][name] for each in by_rank], layout) for name in inputs}
    return answers


def _whole(by_rank: list[Answer], layout: Layout) -> Answer:
    context = by_rank[0][0].shape[2] * layout.world
    order = torch.cat([layout.positions(rank, context) for rank in range(layout.world)]).argsort()
    out, dq, dk, dv = (torch.cat(parts, dim=2)[:, :, order] for parts in zip(*by_rank, strict=True))
    return out, dq, dk, dv


def _rank(rank: int, world: int, folder: str) -> None:
    """One process: every peer in turn."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    inputs = torch.load(Path(folder) / "inputs")
    answers: dict[str, Any] = {}
    for peer, (ask, layout, settings) in _PEERS.items():
        positions = Layout(layout, world).positions(rank, next(iter(inputs.values()))[0].shape[2])
        try:
            answers[peer] = {
                name: ask(*(tensor[:, :, positions].contiguous() for tensor in case), **settings)
                for name, case in inputs.items()
            }
        except (ImportError, AttributeError) as error:
            answers[peer] = f"{type(error).__name__}: {error}"
    torch.save(answers, Path(folder) / f"answers {rank}")
    dist.destroy_process_group()


def _torch_ring(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, *, rotate: str, balanced: bool) -> Answer:
    """PyTorch's own engine (torch.distributed.tensor.experimental._context_parallel, private) around its CPU kernel."""
    from torch.distributed.tensor.experimental._context_parallel import _attention

    engine: Any = _attention  # what it takes is more than its types say
    engine._cp_options.enable_load_balance = balanced
    engine._cp_options.rotate_method = engine._RotateMethod[rotate]
    group = dist.group.WORLD
    assert group is not None
    out, lse, *_ = engine._templated_ring_attention(group, 2, _op, q, k, v, is_causal=True)
    dq, dk, dv, *_ = engine._templated_ring_attention_backward(
        group, 2, _op_backward, d_out, "grad_out", q, k, v, out, lse, is_causal=True
    )
    return out, dq, dk, dv


def _op(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor]:
    return _flash(query, key, value, 0.0, is_causal)


def _op_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, is_causal: bool
) -> tuple[Tensor, ...]:
    return _flash_backward(grad_out, query, key, value, out, logsumexp, 0.0, is_causal)


def _ring_attention_pytorch(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor) -> Answer:
    """The package of that name. Its queries share K/V heads in turns (query head i uses i mod G), ours in blocks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its type checker's, of its own annotations
        from ring_attention_pytorch import ring, ring_flash_attention

    def ring_pass(*given: Any) -> Tensor:
        """Version 0.5.20 gives (received, sent) and takes the pair for dk and dv, which are both in `received`."""
        received: Any = ring.ring_pass(*given)
        return received[0] if isinstance(received, tuple) else received

    heads, groups = q.shape[1], k.shape[1]
    order = torch.arange(heads).view(groups, -1).T.flatten()
    mine = [tensor.transpose(1, 2).contiguous().requires_grad_() for tensor in (q[:, order], k, v)]
    with mock.patch.object(ring_flash_attention, "ring_pass", ring_pass):
        out = ring_flash_attention.ring_flash_attn(*mine, causal=True, bucket_size=8, ring_reduce_col=True)
        gradients = torch.autograd.grad(out, mine, d_out[:, order].transpose(1, 2))
    out, dq, dk, dv = (tensor.detach().transpose(1, 2) for tensor in (out, *gradients))
    return out[:, order.argsort()], dq[:, order.argsort()], dk, dv


_PEERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    **{
        f"torch {rotate.lower()}{' balanced' if balanced else ''}": (
            _torch_ring,
            "zigzag" if balanced else "contiguous",
            {"rotate": rotate, "balanced": balanced},
        )
        for rotate in ("ALL_GATHER", "ALL_TO_ALL")
        for balanced in (False, True)
    },
    "ring-attention-pytorch": (_ring_attention_pytorch, "contiguous", {}),
}


def _main(folder: str, world: str) -> None:
    for module in ("torch.distributed.tensor.experimental._context_parallel._attention", "ring_attention_pytorch"):
        with warnings.catch_warnings(), contextlib.suppress(ImportError):
            warnings.simplefilter("ignore")
            importlib.import_module(module)  # once, before the ranks part
    torch.multiprocessing.start_processes(_rank, (int(world), folder), nprocs=int(world), start_method="fork")


if __name__ == "__main__":
    _main(*sys.argv[1:])
