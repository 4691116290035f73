"""Two machines and a cable, in a world: `testbed shape` on both ends, and what they measure of their link then.

`python -m tests.emulation.two_machines --bw 50mbit …` prints it as JSON: what each command said and its status, what
the interfaces carried before, while and after, and what both ends measured.
"""

import json
import re
import signal
import subprocess
import sys

from emulation.kernel.syscalls import netns_path
from emulation.kernel.world import run_in_world

ENDS = {"a": "10.78.0.1", "b": "10.78.0.2"}
OTHERS = (
    "qdisc add dev eth0 root handle 5: htb default 2",
    "class add dev eth0 parent 5: classid 5:1 htb rate 5mbit",
    "class add dev eth0 parent 5:1 classid 5:2 htb rate 1mbit",
    "qdisc add dev eth0 parent 5:2 handle 51: tbf rate 1mbit burst 8000 limit 60000",
    "filter add dev eth0 parent 5: protocol all u32 match u32 0 0 flowid 5:2",
    "qdisc add dev eth0 clsact",
    "filter add dev eth0 egress protocol all u32 match u32 0 0 flowid 1:1",
    "filter add dev eth0 ingress protocol all u32 match u32 0 0 flowid 1:1",
)
"""What somebody else may have put on an interface."""
_MEASURE = """
import json, sys
from emulation.measure.neighbour_check import measure
from testbed.settings.network_flags import AskedLink
from testbed.settings.network_flags import link_of
rank, *words = sys.argv[1:]
asked = dict(zip(words[::2], words[1::2]))
link = link_of(AskedLink(**{key.strip("-"): value for key, value in asked.items()}).changes())
try:
    print(json.dumps(measure(int(rank), ["10.78.0.1", "10.78.0.2"], link).record()))
except Exception as error:
    print(json.dumps({"error": str(error)}))
"""


def sh(line: str) -> str:
    return subprocess.run(line, shell=True, check=True, capture_output=True, text=True).stdout


def on(end: str, *words: str) -> list[str]:
    return ["nsenter", f"--net={netns_path(end)}", "--", *words]


def testbed(end: str, *words: str) -> list[str]:
    return on(end, sys.executable, "-m", "testbed", "shape", *words)


def state() -> list[str]:
    parts = []
    for end in ENDS:
        inside = f"ip netns exec {end} "
        parts += [sh(f"{inside}tc qdisc show"), sh(f"{inside}ip -o -d link"), sh(f"{inside}iptables -t mangle -S")]
    later = r"<[^>]*>|state \w+|gso_max_segs 65535 "  # what the kernel says of a cable that was just plugged in
    return [re.sub(later, "", text) for text in parts]


def measure_both(words: list[str]) -> list[dict]:
    """As if the link were what the words say."""
    measuring = [
        subprocess.Popen(on(end, sys.executable, "-c", _MEASURE, str(rank), *words), stdout=subprocess.PIPE, text=True)
        for rank, end in enumerate(ENDS)
    ]
    return [json.loads(each.communicate()[0].splitlines()[-1]) for each in measuring]


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def main() -> int:
    words = sys.argv[1:]
    for end in ENDS:
        sh(f"ip netns add {end}; ip -n {end} link set lo up")
    sh("ip -n a link add eth0 type veth peer name eth0 netns b")
    for end, address in ENDS.items():
        sh(f"ip -n {end} addr add {address}/24 dev eth0; ip -n {end} link set eth0 up")
    found: dict = {"before": state()}
    found["unshaped"] = measure_both(words)
    print_to = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    holds = {end: subprocess.Popen(testbed(end, "eth0", *words, "--hold"), **print_to) for end in ENDS}
    found["said"] = [first_line(held) for held in holds.values()]
    found["while"] = state()
    again = subprocess.run(testbed("a", "nosuch", *words), **print_to, check=False)
    found["nosuch"] = [again.returncode, again.stderr]
    found["measured"] = measure_both(words)
    for held in holds.values():
        held.send_signal(signal.SIGINT)
    found["ended"] = [[*held.communicate(), held.returncode] for held in holds.values()]
    found["after"] = state()
    once = subprocess.run(testbed("a", "eth0", "--bw", "50mbit"), **print_to, check=False)
    found["once"] = [once.returncode, once.stdout + once.stderr]
    undone = subprocess.run(testbed("a", "eth0", "--undo"), **print_to, check=False)
    found["undone"] = [undone.returncode, undone.stdout, state() == found["before"]]
    for line in OTHERS:
        sh(f"ip netns exec a tc {line}")
    theirs = state()
    foreign = subprocess.run(testbed("a", "eth0", "--bw", "50mbit"), **print_to, check=False)
    kept = state() == theirs
    forced = subprocess.run(testbed("a", "eth0", "--bw", "50mbit", "--force"), **print_to, check=False)
    subprocess.run(testbed("a", "eth0", "--undo"), **print_to, check=False)
    found["foreign"] = [foreign.returncode, foreign.stderr, kept, forced.returncode, state() == found["before"]]
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(run_in_world(main))
