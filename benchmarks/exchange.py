"""K/V exchanges on a shaped link: our sockets beside gloo, as ratios to bytes / expected goodput.

    .venv/bin/python benchmarks/exchange.py --bw 10mbit --accounting nic

Four nodes each send `--message` bytes to each of three peers, again and again. Per transport: seconds of an exchange
(median over rounds) and the ratio to what the link allows. 1.00 is the wire.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROUNDS, WARM_UP = 12, 3
TRANSPORTS = ("sockets", "gloo isend, then irecv", "gloo irecv posted first", "gloo all_gather")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bw", default="10mbit")
    parser.add_argument("--accounting", choices=("nic", "pair"), default="nic")
    parser.add_argument("--message", type=int, default=131072)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        run_rank(options)
        return 0
    from emulation.kernel.world import run_in_world

    return run_in_world(lambda: run_all(options))


def run_all(options: argparse.Namespace) -> int:
    """Build the network, run a rank on every node, print the table."""
    from emulation.nodes.netns import NetnsBackend
    from emulation.spec.network import Link, goodput_bps, star
    from emulation.spec.units import parse_rate

    link = Link(rate_bps=parse_rate(options.bw))
    with NetnsBackend(star(options.nodes, link, options.accounting)) as backend:
        processes = [
            backend.popen(
                node,
                [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--rank"],
                env={**os.environ, **backend.environment(node), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
            )
            for node in backend.network.nodes
        ]
        answers = [json.loads(process.communicate()[0]) for process in processes]
    messages = options.nodes - 1 if options.accounting == "nic" else 1
    floor = messages * options.message * 8 / goodput_bps(link.rate_bps or 0)
    print(f"{options.nodes} nodes, {options.message} B to each, {options.bw} {options.accounting}: floor {floor:.4f} s")
    for name in TRANSPORTS:
        seconds = max(answer[name] for answer in answers)
        print(f"  {name:26s} {seconds:8.4f} s   {seconds / floor:5.2f} x the floor")
    return 0


def run_rank(options: argparse.Namespace) -> None:
    """Time every transport on this node."""
    import torch
    import torch.distributed as dist

    from testbed.parallel.transport import Sockets

    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    addresses = [(address, 29400) for address in os.environ["NODE_ADDRS"].split(",")]
    ours = Sockets.connect(rank, addresses)
    dist.init_process_group("gloo")
    others = [other for other in range(world) if other != rank]
    message = torch.zeros(options.message, dtype=torch.uint8)
    inboxes = {other: torch.empty_like(message) for other in others}
    gathered = [torch.empty_like(message) for _ in range(world)]

    def sockets() -> None:
        outgoing = [message if other != rank else None for other in range(world)]
        ours.exchange(outgoing, {"kv": options.message * len(others)}).wait()

    def naive() -> None:
        sends = [dist.isend(message, other) for other in others]
        for work in [*[dist.irecv(inboxes[other], other) for other in others], *sends]:
            assert work is not None
            work.wait()

    def receives_first() -> None:
        receives = [dist.irecv(inboxes[other], other) for other in others]
        for work in [*[dist.isend(message, other) for other in others], *receives]:
            assert work is not None
            work.wait()

    variants = (sockets, naive, receives_first, lambda: dist.all_gather(gathered, message))
    print(json.dumps({name: timed(run, dist.barrier) for name, run in zip(TRANSPORTS, variants, strict=True)}))
    dist.barrier()
    dist.destroy_process_group()
    ours.close()


def timed(run, barrier) -> float:
    """Median seconds of `run` over the rounds after the warm-up."""
    seconds = []
    for _ in range(ROUNDS):
        barrier()
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return median(seconds[WARM_UP:])


if __name__ == "__main__":
    sys.exit(main())
