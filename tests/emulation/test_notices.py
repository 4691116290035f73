"""What is changed and taken back between two looks is heard; looking is not."""

import pytest

pytestmark = pytest.mark.world

LISTEN = """
from emulation.nodes.notices import Notices
with NetnsBackend(net(2, "20mbit", ACCOUNTING)) as backend, Notices(backend) as notices:
    backend.check_readback()
    counters = [WireCounter(backend.counter(node)) for node in backend.network.nodes]
    [counter.read() for counter in counters]
    quiet = notices.heard()
    CHANGE
    heard = notices.heard()
    backend.check_readback()
    return {"quiet": quiet, "heard": heard, "again": notices.heard()}
"""
CHANGES = {
    "a rate cut to a third and put back": ("""
slower = backend.network.change(lambda link: replace(link, rate_bps=link.rate_bps // 3))
network = backend.network
backend.change(slower)
backend.change(network)""", "n0: a "),
    "a name": ("""
sh("ip -n switch link set sw0 alias looked")""", "switch: an interface was changed"),
    "a route": ("""
sh("ip -n n1 route add 192.0.2.0/24 dev eth0; ip -n n1 route del 192.0.2.0/24 dev eth0")""", "n1: a route was"),
    "a rule": ("""
sh("ip -n switch rule add pref 50 from 192.0.2.1 blackhole; ip -n switch rule del pref 50")""", "switch: a rout"),
    "an address": ("""
sh("ip -n n0 addr add 192.0.2.9/32 dev eth0; ip -n n0 addr del 192.0.2.9/32 dev eth0")""", "n0: an address was"),
    "more than there is room for": ("""
lines = "addr add 192.0.2.9/32 dev eth0\\naddr del 192.0.2.9/32 dev eth0\\n" * 2000
subprocess.run(["ip", "-n", "n0", "-batch", "-"], input=lines, text=True, check=True)""", "n0: more changed than"),
    "nothing": ("pass", None),
}  # fmt: skip


@pytest.mark.parametrize("accounting", ["nic", "pair"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_heard_though_it_was_taken_back(world, name, accounting):
    """Once; the readback beside it finds nothing, and what reads shapers and counters says nothing."""
    change, said = CHANGES[name]
    body = LISTEN.replace("ACCOUNTING", repr(accounting)).replace(
        "    CHANGE", "\n".join("    " + line for line in change.strip().splitlines())
    )
    found = world(body)
    assert found["quiet"] == []
    assert found["again"] == []
    if said is None:
        assert found["heard"] == []
    else:
        assert any(text.startswith(said) for text in found["heard"]), found["heard"]
