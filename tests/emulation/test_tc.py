"""Shapers return commands and say what the kernel should report."""

import copy

import pytest

from emulation.errors import UsageError
from emulation.network import Link, star
from emulation.nodes.host import HostBackend
from emulation.nodes.netns import NetnsBackend
from emulation.shaping import tc

FAST = Link(rate_bps=300_000_000)


def test_nic_accounting_is_a_token_bucket_at_both_ends():
    network = star(4, FAST, "nic")
    egress, ingress = tc.node_shapers(network, network.nodes[0], FAST)
    assert egress == ingress
    assert egress.lines("eth0", 1) == [
        "qdisc replace dev eth0 root handle 1: tbf rate 300000000bit burst 131072b limit 1500000b"
    ]


def test_pair_accounting_is_a_class_per_destination():
    network = star(3, FAST, "pair")
    egress, ingress = tc.node_shapers(network, network.nodes[1], FAST)
    assert isinstance(egress, tc.Htb)
    assert isinstance(ingress, tc.Pfifo)
    assert [each.destination for each in egress.classes] == ["10.77.0.1", "10.77.0.3", None]
    lines = egress.lines("eth0", 0xA)
    assert "match ip dst 10.77.0.3/32 flowid a:3" in lines[-3]
    assert all(
        "rate 300000000bit ceil 300000000bit" in line
        for line in lines
        if " flowid" not in line and line.startswith("class replace") and "fff " not in line
    )


def test_an_unshaped_link_still_counts():
    network = star(2, Link(), "pair")
    assert tc.node_shapers(network, network.nodes[0], Link()) == (tc.Pfifo(), tc.Pfifo())


@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_what_was_asked_for_has_no_differences_and_any_change_has(accounting):
    network = star(3, FAST, accounting)
    egress, _ = tc.node_shapers(network, network.nodes[0], FAST)
    found = egress.expected()
    assert tc.differences(egress.expected(), found, "n0") == []
    changed = copy.deepcopy(found)
    target = changed["classes"]["2"] if accounting == "pair" else changed
    for key in ("rate_bps", "burst_bytes", "limit_packets" if accounting == "pair" else "limit_bytes"):
        kept = target[key]
        target[key] = kept // 2
        assert key in tc.differences(egress.expected(), changed, "n0")[0]
        target[key] = kept


def test_every_command_is_known_without_running_any():
    commands = NetnsBackend(star(2, FAST, "nic")).commands()
    assert "ip netns add n0" in commands
    assert any("tc -n n1 qdisc replace dev eth0" in line for line in commands)
    assert any("disable_ipv6=1" in line for line in commands)


def test_a_delay_or_a_loss_is_refused_rather_than_left_out():
    for link in (Link(rate_bps=10**7, delay_us=20_000), Link(rate_bps=10**7, loss=0.01)):
        with pytest.raises(UsageError, match="shapes rates only"):
            NetnsBackend(star(2, link, "nic"))


def test_host_nodes_refuse_a_rate():
    with pytest.raises(UsageError, match="no links to shape"):
        HostBackend(star(2, FAST, "nic"))
