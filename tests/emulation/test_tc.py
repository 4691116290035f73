"""Shapers return commands and say what the kernel should report."""

import copy
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation.errors import UsageError
from emulation.kernel.netlink import decode_tc
from emulation.nodes import netns
from emulation.nodes.host import HostBackend
from emulation.nodes.netns import NetnsBackend
from emulation.shaping import tc
from emulation.shaping.netem import Netem
from emulation.spec.network import Accounting, Link, star

FAST = Link(rate_bps=300_000_000)


def test_nic_accounting_is_two_token_buckets_at_both_ends():
    network = star(4, FAST, "nic")
    egress, ingress = tc.node_shapers(network, network.nodes[0])
    assert egress == ingress
    (line,) = egress.lines("eth0", 1)
    assert line.startswith("qdisc replace dev eth0 root handle 1: tbf rate 300000000bit burst 131072b limit 1500000b")
    assert "peakrate 315000000bit mtu " in line


def test_a_node_may_send_slower_than_it_receives():
    network = star(2, Link(rate_bps=10**7, rate_down_bps=10**8), "nic")
    egress, ingress = tc.node_shapers(network, network.nodes[0])
    assert isinstance(egress, tc.Tbf)
    assert isinstance(ingress, tc.Tbf)
    assert (egress.rate_bps, ingress.rate_bps) == (10**7, 10**8)


def test_pair_accounting_is_a_class_per_destination():
    network = star(3, FAST, "pair")
    egress, ingress = tc.node_shapers(network, network.nodes[1])
    assert isinstance(egress, tc.Htb)
    assert isinstance(ingress, tc.Pfifo)
    assert [each.destination for each in egress.classes] == [None, "10.77.0.1", "10.77.0.3"]
    lines = egress.lines("eth0", 0xA)
    assert "match ip dst 10.77.0.3/32 flowid a:3" in lines[-1]
    assert all(
        "rate 300000000bit ceil 315000000bit" in line
        for line in lines
        if " flowid" not in line and line.startswith("class replace") and "fff " not in line
    )


def test_every_pair_may_have_a_rate_of_its_own():
    network = replace(star(3, FAST, "pair"), pair_links=((1, 2, Link(rate_bps=10**6)),))
    egress, _ = tc.node_shapers(network, network.nodes[1])
    assert isinstance(egress, tc.Htb)
    assert [each.rate_bps for each in egress.classes[1:]] == [300_000_000, 10**6]


@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_a_wires_framing_is_counted_with_every_packet(accounting):
    """38 bytes of which tc counts the Ethernet header's 14 by itself."""
    network = replace(star(2, FAST, accounting), framing="ethernet")
    egress, _ = tc.node_shapers(network, network.nodes[0])
    assert sum(" overhead 24" in line for line in egress.lines("eth0", 1)) == 1
    plain, _ = tc.node_shapers(star(2, FAST, accounting), network.nodes[0])
    assert not any("overhead" in line for line in plain.lines("eth0", 1))


def test_what_finds_no_class_is_shaped_before_any_other():
    network = star(3, FAST, "pair")
    lines = tc.node_shapers(network, network.nodes[0])[0].lines("eth0", 1)
    assert lines[0].endswith("root handle 1: htb default fff")
    assert "classid 1:fff htb rate 1000000bit" in lines[1]


@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_a_queue_is_as_many_bytes_as_were_asked_for(accounting):
    """In bytes and not in packets, of which the kernel counts a super-packet as one."""
    network = star(2, replace(FAST, queue_bytes=100_000), accounting)
    egress = tc.node_shapers(network, network.nodes[0])[0]
    assert [" limit 100000b" in line for line in egress.lines("eth0", 1)].count(True) == 1
    shaper = egress.expected()
    assert (shaper["classes"]["2"] if accounting == "pair" else shaper)["limit_bytes"] == 100_000


def test_an_unshaped_link_still_counts():
    network = star(2, Link(), "pair")
    assert tc.node_shapers(network, network.nodes[0]) == (tc.Pfifo(), tc.Pfifo())


def test_a_change_in_place_grafts_nothing():
    network = star(3, FAST, "pair")
    egress, _ = tc.node_shapers(network, network.nodes[0])
    assert not any("root" in line or "filter" in line for line in egress.lines("eth0", 1, change=True))


@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_what_was_asked_for_has_no_differences_and_any_change_has(accounting):
    network = star(3, FAST, accounting)
    egress, _ = tc.node_shapers(network, network.nodes[0])
    found = egress.expected()
    assert tc.differences(egress.expected(), found, "n0") == []
    changed = copy.deepcopy(found)
    target = changed["classes"]["2"] if accounting == "pair" else changed
    for key in ("rate_bps", "burst_bytes", "limit_bytes"):
        kept = target[key]
        target[key] = kept // 2
        assert key in tc.differences(egress.expected(), changed, "n0")[0]
        target[key] = kept


def test_every_command_is_known_without_running_any():
    commands = NetnsBackend(star(2, FAST, "nic")).commands()
    assert "ip netns add n0" in commands
    assert any("tc -n n1 qdisc replace dev eth0" in line for line in commands)
    assert any("disable_ipv6=1" in line for line in commands)


NETEM = Link(rate_bps=10**8, delay_us=20_000, jitter_us=1000, distribution="pareto", loss=0.01, reorder=0.02)


def test_netem_stands_behind_the_bucket_or_in_each_class():
    nic, _ = tc.node_shapers(*(lambda n: (n, n.nodes[0]))(star(2, NETEM, "nic")), netem=True)
    line = nic.lines("eth0", 1)[1]
    assert line.startswith("qdisc replace dev eth0 parent 1:1 handle 7001: netem limit ")
    assert "delay 20000us 1000us distribution pareto loss random 1.000000% reorder 2.000000%" in line
    pair, _ = tc.node_shapers(*(lambda n: (n, n.nodes[0]))(star(2, NETEM, "pair")), netem=True)
    assert "qdisc replace dev eth0 parent 1:2 handle 7002: netem limit" in pair.lines("eth0", 1)[4]


def altered(before: Link, after: Link, accounting: Accounting = "nic") -> list[str]:
    """The lines that turn one link into another, on n0's eth0."""
    networks = [star(2, link, accounting) for link in (before, after)]
    was, is_now = (tc.node_shapers(network, network.nodes[0], netem=True)[0] for network in networks)
    return tc.change_lines(was, is_now, "eth0", 1)


def test_a_netem_that_is_no_longer_wanted_is_replaced_and_found_if_not():
    delayed, plain = Link(rate_bps=20_000_000, delay_us=20_000), Link(rate_bps=20_000_000)
    assert altered(delayed, plain)[-1] == "qdisc replace dev eth0 parent 1:1 handle 1001: bfifo limit 100000b"
    assert altered(plain, plain) == altered(delayed, delayed) == []
    before, bucket = (
        tc.node_shapers(star(2, link, "nic"), star(2, link, "nic").nodes[0], netem=True)[0] for link in (delayed, plain)
    )
    found = bucket.expected() | {"leaf": before.expected()["leaf"]}
    assert tc.differences(bucket.expected(), found, "n0 tx") == ["n0 tx: a netem was not asked for"]


@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_an_unshaped_link_whose_impairment_comes_or_goes_gets_a_new_root(accounting):
    """A kernel refuses another kind under the same handle."""
    for before, after, what in (
        (Link(loss=0.1), Link(), "pfifo limit 10000"),
        (Link(), Link(loss=0.1), "netem limit 10000 delay 0us loss random 10.000000%"),
    ):
        between, root = altered(before, after, accounting)
        assert between == "qdisc replace dev eth0 root handle fff: pfifo limit 10000"
        assert root == f"qdisc replace dev eth0 root handle 1: {what}"


@pytest.mark.parametrize("rate_bps", [None, 10**8])
def test_a_netem_whose_jitter_or_reordering_is_of_another_kind_is_a_new_one(rate_bps):
    """A kernel keeps the table and the probability that it is not told anew; numbers it changes in place."""
    link = replace(NETEM, rate_bps=rate_bps, distribution="normal")

    def handles(after):
        return {line.partition(" handle ")[2].split()[0] for line in altered(link, after) if "netem" in line}

    (own,) = handles(replace(link, loss=0.02)) | handles(replace(link, delay_us=30_000, jitter_us=0))
    for after in (replace(link, distribution="uniform"), replace(link, reorder=0.0)):
        lines = altered(link, after)
        assert (
            any("root handle fff: pfifo" in line for line in lines) if rate_bps is None else own not in handles(after)
        )


def test_a_change_of_rate_leaves_an_ordinary_queue_alone():
    (line,) = altered(FAST, replace(FAST, rate_bps=200_000_000))
    assert line.startswith("qdisc replace dev eth0 root handle 1: tbf rate 200000000bit")


def test_pairs_without_a_rate_that_differ_are_delayed_by_the_delay_line():
    """Netem would delay all that a node sends alike, and agree with itself."""
    network = replace(star(3, Link(delay_us=1000), "pair"), pair_links=((0, 1, Link(delay_us=50_000)),))
    backend = NetnsBackend(network, delays="netem")
    commands = backend.commands()
    assert not any("netem" in command for command in commands)
    assert any("NFQUEUE" in command for command in commands)
    assert backend.describe()["delays"] == "delay line"
    for alike in (star(3, Link(delay_us=1000), "pair"), replace(network, link=FAST, pair_links=())):
        assert not any("NFQUEUE" in command for command in NetnsBackend(alike, delays="netem").commands())
    nic = NetnsBackend(replace(star(2, Link(), "nic"), node_links=((0, Link(delay_us=1000)),)), delays="netem")
    assert [command for command in nic.commands() if "netem" in command] == [
        "tc -n n0 qdisc replace dev eth0 root handle 1: netem limit 10000 delay 1000us"
    ]
    assert nic.describe()["delays"] == "netem"


def test_delays_are_in_place_before_the_shapers(monkeypatch):
    """So that no packet of a link that is to be delayed passes without its delay."""
    backend = NetnsBackend(star(2, Link(delay_us=1000), "nic"), delays="delay line")
    order = []
    monkeypatch.setattr(netns, "run_all", lambda *_: order.append("shapers"))
    monkeypatch.setattr(backend.delay_line, "apply", lambda *_: order.append("delays"))
    backend.shape(backend.network)
    assert order == ["delays", "shapers"]


def test_netems_limit_holds_the_bandwidth_delay_product():
    egress, _ = tc.node_shapers(*(lambda n: (n, n.nodes[0]))(star(2, NETEM, "nic")), netem=True)
    assert isinstance(egress, tc.Tbf)
    assert egress.netem is not None
    assert egress.netem.limit_packets * 1514 * 8 >= 10**8 * 0.040


@given(st.floats(0.001, 0.95), st.floats(1.0, 50.0))
def test_gilbert_and_elliott_lose_the_share_and_the_runs_that_were_asked(loss, burst):
    burst = max(burst, Link(loss=loss).smallest_burst)
    enter, leave = Netem.of(Link(loss=loss, loss_burst=burst), 1).gilbert_elliott()
    assert enter <= 1 + 1e-9
    assert enter / (enter + leave) == pytest.approx(loss)
    assert 1 / leave == pytest.approx(burst)


def test_netems_readback_is_compared_field_by_field():
    expected = Netem.of(NETEM, 5000).expected()
    assert tc.differences(expected, {**expected}, "n0") == []
    for key, wrong in (("delay_us", 19_000), ("limit_packets", 1000), ("loss_share", 0.02), ("jitter_us", 0)):
        found: Any = {**expected, key: wrong}
        assert key in tc.differences(expected, found, "n0")[0]


def test_netems_message_is_decoded():
    """As a kernel of Debian 12 (6.1) reports `netem limit 4321 delay 20ms 1ms loss 1% reorder 2%`."""
    certain = 2**32 - 1
    options = struct.pack("=IIIIII", 20_000_000 // 64, 4321, int(0.01 * certain), 1, 0, 1_000_000 // 64)
    options += struct.pack("=HHII", 12, 3, int(0.02 * certain), 0)  # TCA_NETEM_REORDER
    options += struct.pack("=HHq", 12, 10, 20_000_000) + struct.pack("=HHq", 12, 11, 1_000_000)
    message = struct.pack("=B3xiIII", 0, 2, 0x10000, 0xFFFFFFFF, 2)
    message += struct.pack("=HH", 10, 1) + b"netem\0\0\0"
    message += struct.pack("=HH", 4 + len(options), 2) + options
    decoded = decode_tc(message)
    assert decoded["kind"] == "netem"
    assert (decoded["limit_packets"], decoded["delay_us"], decoded["jitter_us"]) == (4321, 20_000, 1000)
    assert decoded["loss_share"] == pytest.approx(0.01, abs=1e-6)
    assert decoded["reorder_share"] == pytest.approx(0.02, abs=1e-6)


def test_host_nodes_refuse_a_rate():
    with pytest.raises(UsageError, match="no links to shape"):
        HostBackend(star(2, FAST, "nic"))
