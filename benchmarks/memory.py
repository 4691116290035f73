"""What each exchange keeps between the passes and holds at its peak, beside its formula.

    .venv/bin/python benchmarks/memory.py

One layer's attention on the last of four ranks, whose messages come at once; a process for each scheme. Resident memory
is read before, between the passes and at the most; what `local` takes (q, k, v, out and their gradients, without which
there is no attention) is taken away. u = K and V of one rank's tokens in fp32, in which they are computed with.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

NODES, TOKENS, WIDTH, HEADS, BATCH = 4, 512, 512, 8, 16
UNIT = BATCH * TOKENS * WIDTH * 2 * 4
CODED = "(N−1) (1 + r/2d) u"
BASES = NODES * BATCH * 4 * WIDTH * 36 * 4 / UNIT
SCHEMES = {
    # name: (exchange, codec, ranks, what is kept: text, in units u)
    "local": ("local", "exact", (), "0", 0.0),
    "all-gather bf16": ("all-gather", "exact", (), "(N−1) u", 3.0),
    "ring bf16": ("ring", "exact", (), "u/2, the own message", 0.5),
    "ulysses bf16": ("ulysses", "exact", (), "u: V and out are copies", 1.0),
    "subspace": (
        "all-gather",
        "subspace",
        (10, 26),
        f"{CODED} + u/2: the projected V; + N U(θ)",
        3.5 + 3 * 36 / 1024 + BASES,
    ),
    "latent int4": ("all-gather", "latent+int4", (64,), f"{CODED} + u: [K, V]", 4.0 + 3 * 64 / 1024),
    "best": ("all-gather", "best", (), f"{CODED} + u: [K, V]", 4.0 + 3 * 128 / 1024),
}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1])))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed is given back
    found = {
        name: json.loads(
            subprocess.run(
                [sys.executable, "-W", "ignore", __file__, name], env=environment, check=True, capture_output=True
            ).stdout
        )
        for name in SCHEMES
    }
    print(f"{BATCH} × {TOKENS} tokens on each of {NODES} nodes, width {WIDTH}: u = {UNIT / 1e6:.1f} MB\n")
    print("| scheme | kept between the passes, in u | formula | peak forward, in u | backward |")
    print("|---|---|---|---|---|")
    for name, (*_, text, units) in SCHEMES.items():
        kept, forward, backward = ((found[name][i] - found["local"][i]) / UNIT for i in range(3))
        print(f"| {name} | {kept:.2f} | {text} = {units:.2f} | {forward:.2f} | {backward:.2f} |", flush=True)


def measured(name: str) -> list[int]:
    """Bytes above the start: kept between the passes, and at most during each."""
    import torch
    from echo import Echo

    from testbed.codecs import make_codec
    from testbed.config import Arm, CodecConfig, Model
    from testbed.parallel.exchanges import make_exchange

    torch.set_num_threads(1)
    torch.manual_seed(0)
    exchange, codec_name, ranks, *_ = SCHEMES[name]
    model = Model(vocabulary=2, width=WIDTH, layers=1, heads=HEADS, kv_heads=HEADS, ffn=2)
    config = CodecConfig(name=codec_name, ranks=ranks)
    codec = make_codec(config, WIDTH, layer=0, seed=0, kv_heads=HEADS)
    linear = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    codec.start(linear, linear, torch.randn(1200, 2 * WIDTH))
    arm = Arm(name="x", exchange=exchange, codec=config, sync="average", link="bw")  # pyrefly: ignore
    codecs = [] if exchange == "local" else [codec]
    attention = make_exchange(arm, model, codecs, Echo(NODES - 1, NODES))  # pyrefly: ignore

    def inputs(sequences: int) -> list[torch.Tensor]:
        return [torch.randn(sequences, TOKENS, WIDTH, requires_grad=True) for _ in range(3)]

    small = inputs(1)
    torch.autograd.grad(attention.attend(0, *small).sum(), small)  # libraries are loaded, tables computed
    given, d_out = inputs(BATCH), torch.randn(BATCH, TOKENS, WIDTH)
    watch = Watch()
    start = resident()
    out = attention.attend(0, *given)
    forward, kept = watch.most() - start, resident() - start
    torch.autograd.grad(out, given, d_out)
    return [kept, forward, watch.most() - start]


class Watch:
    """The most memory that was resident, looked at every half millisecond: peaks last longer here."""

    def __init__(self) -> None:
        self._most = 0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self._most = max(self._most, resident())
            time.sleep(0.0005)

    def most(self) -> int:
        """Since the last time it was asked."""
        most, self._most = self._most, 0
        return most


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
