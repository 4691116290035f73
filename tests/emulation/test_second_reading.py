"""What the kernel has, read a second time by pyroute2, whose decoding is its own."""

import pytest

pytest.importorskip("pyroute2", reason="pyroute2 is a development dependency")
pytestmark = pytest.mark.world

THEIRS = """
import json
from pyroute2 import IPRoute

def options(message):
    found = message.get_attr("TCA_OPTIONS")
    return found if found is not None and hasattr(found, "get_attr") else None

def rate(found, parms, name, wide):
    return found.get_attr(wide) or found.get_attr(parms)[name]

with IPRoute() as route:
    index = route.link_lookup(ifname="eth0")[0]
    read = []
    for message in (*[q for q in route.get_qdiscs() if q["index"] == index], *route.get_classes(index)):
        kind, found = message.get_attr("TCA_KIND"), options(message)
        if kind == "tbf" and found is not None:
            parms = found.get_attr("TCA_TBF_PARMS")
            read.append([kind, message["handle"], 8 * rate(found, "TCA_TBF_PARMS", "rate", "TCA_TBF_RATE64"),
                         8 * rate(found, "TCA_TBF_PARMS", "peak", "TCA_TBF_PRATE64"), parms["limit"]])
        elif kind == "htb" and found is not None and found.get_attr("TCA_HTB_PARMS"):
            read.append([kind, message["handle"], 8 * rate(found, "TCA_HTB_PARMS", "rate", "TCA_HTB_RATE64"),
                         8 * rate(found, "TCA_HTB_PARMS", "ceil", "TCA_HTB_CEIL64"), None])
    print(json.dumps(sorted(read)))
"""
READ = f"""
from emulation.kernel.netlink import TcSocket
def ours():
    reader, index = TcSocket(), socket.if_nametoindex("eth0")
    found = [each for each in reader.qdiscs() if each["ifindex"] == index] + reader.classes(index)
    reader.close()
    return sorted([each["kind"], each["handle"], each["rate_bps"], each.get("peak_bps", each.get("ceil_bps")),
                   each.get("limit_bytes")] for each in found if "rate_bps" in each)
with NetnsBackend(net(3, RATE, ACCOUNTING)) as backend:
    words = ["ip", "netns", "exec", "n0", sys.executable, "-W", "ignore", "-c", {THEIRS!r}]
    return [
        backend.at("n0", ours),
        json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout),
    ]
"""


@pytest.mark.parametrize(
    ("rate", "bps", "accounting"),
    [
        ("20mbit", 20_000_000, "nic"),
        ("30gbit", 30_000_000_000, "nic"),
        ("20mbit", 20_000_000, "pair"),
        ("40gbit", 40_000_000_000, "pair"),
    ],
)
def test_rate_ceiling_and_queue_are_what_another_reader_finds(world, rate, bps, accounting):
    """Of tbf (an access link) and of htb's classes (a pair each). Beyond 32 bits of bytes a second, 34 Gbit/s, pyroute2
    0.9.7 reads no tbf: findings/pyroute2_reads_a_fast_bucket_as_34_gbit.sh."""
    ours, theirs = world(READ.replace("RATE", repr(rate), 1).replace("ACCOUNTING", repr(accounting)))
    assert ours == theirs
    assert [each[2] for each in ours].count(bps) == (1 if accounting == "nic" else 2)
