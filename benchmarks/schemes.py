"""Exchanges and codecs over shaped links, beside their own bounds and beside PyTorch's ring engine; ratios of one run.

    .venv/bin/python benchmarks/schemes.py [--bw 10mbit --accounting nic --tokens 128] [--json FILE]

Four nodes, one process each. A step is one layer's attention, forward and backward, on four sequences of which every
node has `--tokens` tokens. Per scheme: bytes on the busiest link, the step over that link, the same step with messages
that come at once (what it computes), both of the slowest rank, and

    bound = computing + bytes / goodput of the link, as measured in this run

1.00 is as fast as the wire and the machine allow without overlap. Schemes take turns, with and without the wire, round
by round; figures are medians over rounds.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

NODES, WIDTH, HEADS = 4, 512, 8
BATCH = 4
LINKS = (("10mbit", "nic", 64, 5), ("100mbit", "nic", 256, 5), ("100mbit", "pair", 256, 5), ("300mbit", "nic", 256, 7))
"""(rate, whose, tokens of each sequence per node, rounds)."""
TORCH = "torch's ring"


@dataclass(frozen=True)
class Scheme:
    """What is timed."""

    name: str
    exchange: str
    codec: str = "exact"
    ranks: tuple[int, ...] = ()
    most: float = 1.05
    """The step over its bound, at most."""


OURS = (
    Scheme("all-gather bf16", "all-gather"),
    Scheme("ring bf16", "ring"),
    Scheme("ulysses bf16", "ulysses"),
    Scheme("subspace", "all-gather", "subspace", (10, 26), most=1.10),
    Scheme("latent int4", "all-gather", "latent+int4", (64,), most=1.10),
    Scheme("best", "all-gather", "best", most=1.10),
)
PEERS = {
    f"{TORCH}, all-gather": ("ALL_GATHER", True),
    f"{TORCH}, all-to-all": ("ALL_TO_ALL", True),
    f"{TORCH}, all-to-all, gradients bf16 too": ("ALL_TO_ALL", False),
}
AS_IT_COMES = list(PEERS)[:2]
GROUPS = {"exact": 100_000, "coded": 8_000}
"""The smallest message of interest, which decides how deep a shaper's bucket is: two networks, one after the other."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bw", help="only this rate")
    parser.add_argument("--accounting", choices=("nic", "pair"), default="nic")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="only schemes whose name has this in it")
    parser.add_argument("--nice", type=int, help="before other work of this machine, e.g. -10 (as root)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        run_rank(options)
        return 0
    from emulation.kernel.world import run_in_world

    return run_in_world(lambda: run_all(options))


def run_all(options: argparse.Namespace) -> int:
    """Every link in turn."""
    if options.nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, options.nice)
        Path("/proc/self/autogroup").write_text(str(options.nice))  # the world is a session of its own (sched(7))
    links = LINKS if options.bw is None else ((options.bw, options.accounting, options.tokens, options.rounds),)
    missed, figures = [], []
    for bw, accounting, tokens, rounds in links:
        shaped, goodput = {}, {}
        for group, smallest in GROUPS.items():
            found, rate = over(bw, accounting, tokens, rounds, options, group, smallest)
            shaped |= found
            goodput |= dict.fromkeys(found, rate)
        table = Table(bw, accounting, (options.sequences, tokens), shaped, goodput)
        print("\n".join(table.lines()), end="\n\n", flush=True)
        missed += table.missed()
        figures.append(table.figures())
    for text in missed:
        print(f"missed: {text}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if missed else 0


def over(
    bw: str, accounting: Any, tokens: int, rounds: int, options: Any, group: str, smallest: int
) -> tuple[dict[str, Any], float]:
    """(figures by scheme, goodput of a link in bit/s) of one network."""
    from dataclasses import replace

    from emulation.measure.verify import measure
    from emulation.nodes.netns import NetnsBackend
    from emulation.spec.network import Link, star
    from emulation.spec.units import parse_rate

    network = star(NODES, Link(rate_bps=parse_rate(bw)), accounting)
    network = replace(network, smallest_message_bytes=smallest)
    with NetnsBackend(network) as backend:
        lines = [line for line in measure(backend, network).links if line.phase == "alone"]
        goodput = median(line.goodput_bps for line in lines)
        command = [sys.executable, "-W", "ignore", __file__, "--rank", "--tokens", str(tokens), "--rounds", str(rounds)]
        command += [
            "--sequences",
            str(options.sequences),
            "--group",
            group,
            *(["--only", options.only] if options.only else []),
        ]
        processes = [
            backend.popen(
                node,
                command,
                env={**os.environ, **backend.environment(node), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
            )
            for node in network.nodes
        ]
        answers = [json.loads(process.communicate()[0]) for process in processes]
    return {name: combined([answer[name] for answer in answers]) for name in answers[0]}, goodput


def combined(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one scheme: the slowest rank of every round, and what a rank sends at most."""
    found: dict[str, Any] = {}
    for name in ("seconds", "computing"):
        found[name] = [max(each) for each in zip(*(rank[name] for rank in ranks), strict=True)]
    for name in ("to_all", "to_one", "messages", "exposed", "total"):
        found[name] = max(rank[name] for rank in ranks)
    return found


class Table:
    """One link's figures."""

    def __init__(
        self, bw: str, accounting: str, tokens: tuple[int, int], shaped: Any, goodput: dict[str, float]
    ) -> None:
        self.link, self.tokens, self.goodput, self.shaped = f"{bw} {accounting}", tokens, goodput, shaped
        self.sent = {name: each["to_all" if accounting == "nic" else "to_one"] for name, each in shaped.items()}
        self.compute = {name: median(each["computing"]) for name, each in shaped.items()}
        self.step = {name: median(each["seconds"]) for name, each in shaped.items()}

        self.compared = any(peer in shaped for peer in AS_IT_COMES)

    def bound(self, name: str) -> float:
        return self.compute[name] + self.sent[name] * 8 / self.goodput[name]

    def ratio(self, name: str) -> float:
        return self.step[name] / self.bound(name)

    def beside_torch(self, name: str) -> float:
        """The step over that of PyTorch's engine as it comes, the faster way to rotate."""
        return self.step[name] / min(self.step[peer] for peer in AS_IT_COMES if peer in self.step)

    def at_best(self, name: str) -> float:
        """As `ratio`, of the quickest rounds: what the machine's other work disturbed least."""
        each = self.shaped[name]
        return min(each["seconds"]) / (min(each["computing"]) + self.bound(name) - self.compute[name])

    def lines(self) -> list[str]:
        found = [
            f"{self.link}, {self.tokens[0]} × {self.tokens[1]} tokens per node, goodput measured "
            + " and ".join(f"{goodput / 1e6:.2f}" for goodput in sorted(set(self.goodput.values())))
            + " Mbit/s",
            "",
            "| scheme | messages | KB on a link | computing | bound | step | / bound | at best | exposed "
            "| of the exchange | / torch's ring |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, each in self.shaped.items():
            cells = [name, each["messages"], f"{self.sent[name] / 1e3:.0f}", f"{self.compute[name] * 1e3:.0f} ms"]
            cells += [f"{self.bound(name) * 1e3:.0f} ms", f"{self.step[name] * 1e3:.0f} ms"]
            cells += [f"{self.ratio(name):.3f}", f"{self.at_best(name):.3f}"]
            cells += ["", ""] if name in PEERS else [f"{each['exposed'] * 1e3:.0f} ms", f"{each['total'] * 1e3:.0f} ms"]
            cells += [f"{self.beside_torch(name):.2f}" if self.compared else ""]
            found.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        return found

    def missed(self) -> list[str]:
        found = []
        for scheme in OURS:
            for name in (scheme.name, f"{scheme.name}, no overlap"):
                if name in self.shaped and self.ratio(name) > scheme.most:
                    found.append(
                        f"{self.link}: {name} takes {self.ratio(name):.3f} of its bound, at most {scheme.most}"
                    )
        exact = OURS[0].name
        if exact in self.shaped and self.compared:
            dominated = self.sent[exact] * 8 / self.goodput[exact] > self.compute[exact]
            if dominated and self.beside_torch(exact) > 0.65:
                found.append(f"{self.link}: {exact} takes {self.beside_torch(exact):.2f} of {TORCH}, at most 0.65")
        return found

    def figures(self) -> dict[str, Any]:
        """For --json."""
        names = {name: {**each, "bound": self.bound(name)} for name, each in self.shaped.items()}
        return {"link": self.link, "tokens": self.tokens, "goodput_bps": self.goodput, "schemes": names}


# What runs on a node.


def run_rank(options: argparse.Namespace) -> None:
    """Time every scheme on this node, in turns."""
    import torch
    import torch.distributed as dist
    from echo import Echo

    from testbed.parallel.transport import Sockets

    torch.set_num_threads(1)
    shape = (options.sequences, options.tokens)
    rank = int(os.environ["RANK"])
    transport = Sockets.connect(rank, [(address, 29400) for address in os.environ["NODE_ADDRS"].split(",")])
    dist.init_process_group("gloo")
    torch.manual_seed(rank)
    steps: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], Any]]] = {}
    for scheme in OURS:
        for overlap in (True, False):
            name = scheme.name if overlap else f"{scheme.name}, no overlap"
            echo = our_step(scheme, Echo(rank, NODES), shape, overlap)
            steps[name] = our_step(scheme, transport, shape, overlap), echo
    for name, (rotate, in_full) in PEERS.items():
        steps[name] = tuple(peer_step(rotate, in_full, shape, echo) for echo in (False, True))  # pyrefly: ignore
    coded = tuple(scheme.name for scheme in OURS if scheme.codec != "exact")
    chosen = {
        name: pair
        for name, pair in steps.items()
        if name.startswith(coded) == (options.group == "coded") and (not options.only or options.only in name)
    }
    found: dict[str, dict[str, Any]] = {
        name: {key: [] for key in ("seconds", "computing", "exposed", "total")} for name in chosen
    }
    for each_round in range(options.rounds + 1):
        for name, (step, echo) in chosen.items():
            seconds, figures = timed(step, dist.barrier)
            computing, _ = timed(echo, dist.barrier)
            if each_round:  # the first warms up
                figures |= {"seconds": seconds, "computing": computing}
                for key, value in found[name].items():
                    if isinstance(value, list):
                        value.append(figures.pop(key, 0.0))
                found[name] |= figures
    for entry in found.values():
        entry |= {name: median(entry[name]) for name in ("exposed", "total")}
    dist.barrier()
    print(json.dumps(found))
    dist.destroy_process_group()
    transport.close()


def timed(work: Callable[[], Any], barrier: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it gave), begun together."""
    barrier()
    started = time.perf_counter()
    answer = work()
    return time.perf_counter() - started, answer


def our_step(scheme: Scheme, transport: Any, shape: tuple[int, int], overlap: bool) -> Callable[[], dict[str, Any]]:
    """One layer's attention, out and back."""
    import torch
    from echo import Echo

    from testbed.codecs import make_codec
    from testbed.collector.trace import current as trace
    from testbed.config import Arm, CodecConfig, Model
    from testbed.parallel.exchanges import make_exchange

    model = Model(vocabulary=2, width=WIDTH, layers=1, heads=HEADS, kv_heads=HEADS, ffn=2)
    config = CodecConfig(name=scheme.codec, ranks=scheme.ranks)
    codec = make_codec(config, WIDTH, layer=0, seed=0, kv_heads=HEADS)
    linear = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    codec.start(linear, linear, torch.randn(1200, 2 * WIDTH))
    arm = Arm(name="x", exchange=scheme.exchange, codec=config, sync="average", link="bw", overlap=overlap)  # pyrefly: ignore
    exchange = make_exchange(arm, model, [codec], transport)
    q, k, v = (torch.randn(*shape, WIDTH, requires_grad=True) for _ in range(3))
    d_out = torch.randn(*shape, WIDTH)
    sent: dict[str, Any] = {}

    def step() -> dict[str, Any]:
        if not isinstance(transport, Echo):
            transport.overlap(overlap)
        trace.take()
        with counted(transport) if not sent else nullcontext() as tally:
            torch.autograd.grad(exchange.attend(0, q, k, v), (q, k, v), d_out)
        if tally is not None:
            sent.update(messages=tally[0], to_all=sum(tally[1].values()), to_one=max(tally[1].values()))
        seconds = trace.take()
        return {**sent, "exposed": seconds.get("exchange", 0.0), "total": seconds.get("exchange_total", 0.0)}

    return step


@contextmanager
def counted(transport: Any) -> Iterator[list[Any]]:
    """[messages, bytes by peer], heads included, of what is handed over inside."""
    from testbed.parallel.transport import HEAD_BYTES

    tally: list[Any] = [0, {}]
    real = transport.exchange

    def exchange(outgoing: list[Any], channels: dict[str, int], **settings: Any) -> Any:
        for peer, message in enumerate(outgoing):
            if message is not None:
                tally[0] += 1
                tally[1][peer] = tally[1].get(peer, 0) + message.numel() + HEAD_BYTES
        return real(outgoing, channels, **settings)

    transport.exchange = exchange
    try:
        yield tally
    finally:
        transport.exchange = real


_rotaters: dict[str, Any] = {}


def peer_step(rotate: str, in_full: bool, tokens: tuple[int, int], echo: bool) -> Callable[[], dict[str, Any]]:
    """PyTorch's engine, K and V in bf16 on the wire, computing in fp32; `in_full`: dK and dV in fp32, as it comes."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor.experimental._context_parallel import _attention

    engine: Any = _attention  # private: what it takes is more than its types say
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    shape = (tokens[0], HEADS, tokens[1], WIDTH // HEADS)
    q, k, v, d_out = (torch.randn(shape) for _ in range(4))
    k, v = k.bfloat16(), v.bfloat16()
    q = q if in_full else q.bfloat16()  # in whose dtype it then sums gradients

    def op(query: Any, key: Any, value: Any, *, is_causal: bool) -> Any:
        return flash(query.float(), key.float(), value.float(), 0.0, is_causal)

    def op_backward(grad_out, query, key, value, out, logsumexp, is_causal) -> Any:
        return flash_backward(grad_out, query.float(), key.float(), value.float(), out, logsumexp, 0.0, is_causal)

    unit = 2 * tokens[0] * tokens[1] * WIDTH * 2  # K and V in bf16
    hops = dist.get_world_size() - 1
    sent = hops * unit * 2 + (hops + 1) * unit * (2 if in_full else 1)
    group = dist.group.WORLD
    assert group is not None

    rotater = _rotaters.setdefault("real", engine._create_rotater)

    class Rotater:
        """What comes is what was sent, at once."""

        def exchange_buffers(self, buffer: Any) -> None:
            self.buffer = buffer

        def next_buffer(self) -> Any:
            return self.buffer

    def step() -> dict[str, Any]:
        engine._cp_options.enable_load_balance = False
        engine._cp_options.convert_to_f32 = in_full
        engine._cp_options.rotate_method = engine._RotateMethod[rotate]
        engine._create_rotater = (lambda *_, **__: Rotater()) if echo else rotater
        out, lse = engine._templated_ring_attention(group, 2, op, q, k, v, is_causal=True)[:2]
        engine._templated_ring_attention_backward(
            group, 2, op_backward, d_out, "grad_out", q, k, v, out, lse, is_causal=True
        )
        return {"to_all": sent, "to_one": sent, "messages": 3 * hops + 1}

    return step


if __name__ == "__main__":
    sys.exit(main())
