"""Every exchange beside one device, over the whole product of what may be combined; writes docs/correctness.md.

    .venv/bin/python benchmarks/correctness.py           # prints the page
    .venv/bin/python benchmarks/correctness.py --write   # and writes it

Exchanges × layouts × heads × numbers of ranks × wires, with and without documents for a subset; messages and bytes
beside closed forms; other people's ring attention on the same numbers. The tests draw from this product. Exit status
1 if any figure is out of its bound.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from testbed.config.arm import LayoutName
from tests.parallel import arithmetic, test_bytes, test_peers
from tests.parallel.arithmetic import (
    FP32_GRADIENT,
    FP32_OUTPUT,
    Case,
    Step,
    apart,
    many_ranks,
    one_device,
    tolerance,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "correctness.md"
EXCHANGES: tuple[str, ...] = ("all-gather", "mask-aware", "ring", "ulysses", "local")
LAYOUTS: tuple[LayoutName, ...] = ("contiguous", "zigzag")
HEADS = ("MHA", "GQA", "MQA")
WORLDS = (1, 2, 3, 4, 8)
WIRES = ("fp64", "fp32", "bf16")


@dataclass
class Worst:
    """Of the cases of one row and wire."""

    output: float = 0.0
    gradient: float = 0.0
    of_bound: float = 0.0
    """The larger of both over its bound."""
    cases: int = 0
    wrong_bytes: list[str] = field(default_factory=list)

    def add(self, case: Case) -> None:
        found = many_ranks(case)
        output, gradient = apart(found, _reference(_key(case)))
        bounds = _bounds(replace(_key(case), layout="contiguous", world=1, exchange="all-gather"))
        self.output, self.gradient = max(self.output, output), max(self.gradient, gradient)
        self.of_bound = max(self.of_bound, output / bounds[0], gradient / bounds[1])
        self.cases += 1
        if found.sent != found.expected:
            self.wrong_bytes.append(case.name)


def _key(case: Case) -> Case:
    """What a single device's result depends on."""
    if case.exchange == "local":
        return case
    return Case(heads=case.heads, wire=case.wire, documents=case.documents, world=1)


@cache
def _reference(case: Case) -> Step:
    return one_device(case)


@cache
def _bounds(case: Case) -> tuple[float, float]:
    return tolerance(case)


def cases() -> Iterator[Case]:
    """The whole product; documents for MHA and GQA on three and four ranks."""
    for exchange, layout, heads, world, wire in product(EXCHANGES, LAYOUTS, HEADS, WORLDS, WIRES):
        case = Case(exchange=exchange, layout=layout, heads=heads, world=world, wire=wire)
        if case.possible:
            yield case
            if heads != "MQA" and world in (3, 4):
                yield replace(case, documents=True)


def agreement() -> tuple[list[str], bool]:
    """The product's table, and whether every bound holds."""
    rows: dict[tuple[str, LayoutName, bool, str], Worst] = {}
    for case in cases():
        rows.setdefault((case.exchange, case.layout, case.documents, case.wire), Worst()).add(case)
    lines = [
        "| exchange | layout | documents | cases | fp64 output | gradient | fp32 output | gradient | bf16 output "
        "| gradient | worst, of its bound |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for exchange, layout, documents in sorted({row[:3] for row in rows}, key=_order):
        worst = [rows[exchange, layout, documents, wire] for wire in WIRES]
        figures = [f"{value:.1e}" for each in worst for value in (each.output, each.gradient)]
        count = sum(each.cases for each in worst)
        bound = max(each.of_bound for each in worst)
        named = [exchange, layout, "yes" if documents else "no", str(count), *figures, f"{bound:.2f}"]
        lines.append("| " + " | ".join(named) + " |")
    wrong = [name for each in rows.values() for name in each.wrong_bytes]
    count = sum(each.cases for each in rows.values())
    lines += ["", f"{count} cases. In {count - len(wrong)} of them every rank handed over exactly the bytes predicted."]
    return lines, not wrong and all(each.of_bound <= 1 for each in rows.values())


def _order(row: tuple[str, LayoutName, bool]) -> tuple[bool, int, str]:
    exchange, layout, documents = row
    return documents, EXCHANGES.index(exchange), layout


def controls() -> tuple[list[str], bool]:
    """Things done wrong on purpose."""
    case = Case(wire="fp64", documents=True)
    found = {
        "the ranks drop the document mask": apart(many_ranks(replace(case, documents=False)), one_device(case)),
        "keys rotated with another base": _other_base(),
        "no exchange at all": apart(many_ranks(Case(exchange="local", wire="fp64")), one_device(Case(wire="fp64"))),
    }
    lines = ["| done wrong | output | gradient |", "|---|---|---|"]
    lines += [f"| {what} | {output:.1e} | {gradient:.1e} |" for what, (output, gradient) in found.items()]
    return lines, all(min(pair) > 1e-3 for pair in found.values())


def _other_base() -> tuple[float, float]:
    class Other(Case):
        @property
        def model(self):
            return replace(super().model, rope_base=500.0)

    return apart(many_ranks(Other(wire="fp64")), one_device(Case(wire="fp64")))


def traffic() -> tuple[list[str], bool]:
    """Messages and bytes of one layer as counted, beside the closed form."""
    lines = [
        "| exchange | forward: messages | bytes | backward: messages | bytes | cases that agree |",
        "|---|---|---|---|---|---|",
    ]
    good = True
    for exchange, layout in product(EXCHANGES, LAYOUTS):
        agree = total = 0
        shown: dict[str, tuple[int, int]] = {}
        for heads, wire, world in product(HEADS, test_bytes.SIZE, WORLDS):
            case = Case(exchange=exchange, layout=layout, heads=heads, wire=wire, world=world)
            if not case.possible:
                continue
            counted = test_bytes.counted(case)
            total += 1
            agree += counted == [test_bytes.closed_form(case, rank) for rank in range(world)]
            if (heads, wire, world) == ("MHA", "bf16", 4):
                shown = {way: tuple(sum(rank[way][i] for rank in counted) for i in (0, 1)) for way in counted[0]}  # pyrefly: ignore
        good &= agree == total
        cells = [f"{shown[way][i]:,}" for way in ("forward", "backward") for i in (0, 1)]
        lines.append(f"| {exchange}, {layout} | " + " | ".join(cells) + f" | {agree} of {total} |")
    return lines, good


def peers() -> tuple[list[str], bool]:
    """The worst difference from each peer over our exchanges, layouts, MHA and GQA."""
    inputs = test_peers.peer_inputs()
    answers = test_peers.ask_peers(inputs, test_peers.WORLD)
    ours = {which: test_peers.answer_of_ours(*which) for which in test_peers.OURS}
    lines = ["| peer | output | dq | dk | dv |", "|---|---|---|---|---|"]
    good = True
    for peer, answer in answers.items():
        if isinstance(answer, str):
            lines.append(f"| {peer} | {answer} | | | |")
            continue
        flat = {heads: test_peers.unrotated(answer[heads], heads) for heads in inputs}
        found = [test_peers.differences(mine, flat[heads]) for (_, _, heads), mine in ours.items()]
        worst = [max(column) for column in zip(*found, strict=True)]
        lines.append(f"| {peer} | " + " | ".join(f"{value:.1e}" for value in worst) + " |")
        good &= worst[0] <= FP32_OUTPUT and max(worst[1:]) <= FP32_GRADIENT
    return lines, good


PAGE_TEXT = """# What agrees with what

Every exchange gives the logits and gradients of a single device, whatever the layout, the heads, the number of ranks
and the number format on the wire. This page is written by `benchmarks/correctness.py --write`; the tests draw from the
same product (`tests/parallel/`).

{made}

## One device and N ranks

A training step of a decoder of {model.layers} layers, width {model.width}, {model.heads} heads (MHA 8, GQA 2, MQA 1 K/V
heads), {bounds.BATCH} sequences of {bounds.CONTEXT} tokens, on N = 1, 2, 3, 4 and 8 ranks.
Each figure is the worst over heads and N:
the largest difference over the largest value, of the logits, and of the worst parameter's summed gradient. Documents:
sequences in which a token sees its own document only (MHA and GQA, N = 3 and 4). Ulysses only where the heads divide by
N. `local` sends nothing, whatever the wire, and is held to a device that computes each rank's tokens alone.

Bounds: fp64 {bounds.FP64:.0e}; fp32 {bounds.FP32_OUTPUT:.0e} for outputs and {bounds.FP32_GRADIENT:.0e} for gradients;
a bf16 wire
{bounds.BF16_RATIO} × the error of one device that computes in bf16. The last column is the worst figure over its bound.

{agreement}

The same comparison of what is wrong on purpose (fp64, so that nothing else differs):

{controls}

## Messages and bytes

One layer, all four ranks together, MHA, bf16, as counted at the transport; and in how many cases (heads × wires × N)
every rank's count is the closed form, forward and backward. The forms are written in `tests/parallel/test_bytes.py`
from the schemes; [exchanges.md](exchanges.md) lists them.

{traffic}

## Other people's ring attention

On the same q, k and v, four ranks over gloo, in fp32: PyTorch's own engine (private,
`torch.distributed.tensor.experimental`) with both of its ways to rotate, with and without its load balancing, and the
package ring-attention-pytorch. Each figure is the worst over our four exchanges, both layouts, MHA and GQA, over the
largest value; bounds {bounds.FP32_OUTPUT:.0e} for outputs, {bounds.FP32_GRADIENT:.0e} for gradients.
Version 0.5.20 of the package
unpacks its last hop's (received, sent) as (dK, dV); it is compared with that line put right
(`tests/parallel/peers.py`).

{peers}

Our decoder beside `transformers`' Llama on the same weights (MHA, GQA, MQA, embeddings tied or not): logits and every
gradient within 1e-5, a test (`tests/test_model.py`).
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    tables = {part.__name__: part() for part in (agreement, controls, traffic, peers)}
    made = (
        f"Made on {time.strftime('%Y-%m-%d')} in {time.monotonic() - started:.0f} s: torch {torch.__version__},\n"
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, real TCP on loopback, ranks as threads."
    )
    texts = {name: "\n".join(lines) for name, (lines, _) in tables.items()}
    page = PAGE_TEXT.format(made=made, model=Case().model, **texts, bounds=arithmetic)
    print(page)
    if options.write:
        PAGE.write_text(page, encoding="utf-8")
    return 0 if all(good for _, good in tables.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
