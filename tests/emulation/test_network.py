"""What a network is, and what its rates imply."""

from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation.errors import UsageError
from emulation.shaping.sizes import PEAK, segments_of, sizes
from emulation.spec.network import Link, Network, goodput_bps, star


def test_a_star_numbers_and_addresses_its_nodes():
    network = star(3, Link(), "pair")
    assert [node.name for node in network.nodes] == ["n0", "n1", "n2"]
    assert [node.address for node in network.nodes] == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
    assert [node.index for node in network.peers(network.nodes[1])] == [0, 2]


def test_goodput_is_1448_of_1514_bytes():
    assert goodput_bps(300e6) == pytest.approx(300e6 * 1448 / 1514)
    assert goodput_bps(300e6, framing="ethernet") == pytest.approx(300e6 * 0.9415, rel=1e-4)
    assert goodput_bps(300e6, mtu=9000) == pytest.approx(300e6 * 8948 / 9014)


def test_a_path_takes_packets_that_both_its_ends_take():
    network = replace(star(3, Link(), "nic"), mtu=9000, node_mtus=((1, 1500),))
    n0, n1, n2 = network.nodes
    assert [network.mtu_of(n0), network.mtu_of(n1), network.mtu_of(n0, n2)] == [9000, 1500, 9000]
    assert network.mtu_of(n0, n1) == network.mtu_of(n1, n0) == 1500


@given(st.integers(5_000_000, 10**10), st.integers(2, 8), st.sampled_from(["nic", "pair"]))
def test_what_passes_at_once_is_milliseconds_and_a_queue_is_forty(rate, nodes, accounting):
    network = star(nodes, Link(rate_bps=rate), accounting)
    segments = segments_of(network, 0)
    depth = sizes(network, rate, network.link, segments, 0)
    assert 2 <= segments <= 44
    assert segments * 1514 <= depth.peak_bytes <= depth.burst_bytes
    assert depth.peak_bytes * 8 / rate <= 0.0125
    assert depth.queue_bytes * 8 / rate <= 0.050
    assert depth.peak_bps == pytest.approx(PEAK * rate, abs=1)


def test_a_queue_grows_with_the_round_trip_unless_it_is_given():
    network = star(2, Link(rate_bps=10**8), "nic")
    assert sizes(network, 10**8, network.link, 2, 100_000).queue_bytes == pytest.approx(10**8 * 0.1 / 8)
    assert sizes(network, 10**8, Link(rate_bps=10**8, queue_us=5000), 2, 100_000).queue_bytes == 62_500
    assert sizes(network, 10**8, Link(rate_bps=10**8, queue_bytes=50_000), 2, 100_000).queue_bytes == 50_000


def test_packets_with_fates_of_their_own_travel_alone():
    """A super-packet lost, or counted with Ethernet's extra bytes once, would be many packets in one."""
    rate = Link(rate_bps=10**9)
    assert segments_of(star(4, rate, "pair"), 0) > 1
    assert segments_of(star(4, replace(rate, loss=0.01), "pair"), 0) == 1
    assert segments_of(replace(star(4, rate, "pair"), framing="ethernet"), 0) == 1


def test_small_messages_meet_tight_buckets():
    """Four frames pass at once at 300 Mbit/s, so that a message of 16 KB takes the time of at least 12."""
    network = replace(star(2, Link(rate_bps=300_000_000), "nic"), smallest_message_bytes=4096)
    depth = sizes(network, 300_000_000, network.link, segments_of(network, 0), 0)
    assert depth.peak_bytes <= 4 * 1514
    assert depth.peak_bps == 315_000_000
    assert depth.burst_bytes >= 2 * depth.peak_bytes


def test_a_bucket_is_at_most_a_twentieth_of_the_smallest_message():
    network = replace(star(2, Link(rate_bps=300_000_000), "nic"), smallest_message_bytes=1_000_000)
    depth = sizes(network, 300_000_000, network.link, segments_of(network, 0), 0)
    assert depth.peak_bytes == depth.burst_bytes == 50_000


def test_coarse_super_packets_need_large_messages():
    network = star(2, Link(rate_bps=300_000_000), "nic")
    assert segments_of(network, 0) < segments_of(replace(network, smallest_message_bytes=4_000_000), 0)


def test_a_path_is_the_senders_up_and_the_receivers_down():
    slow, fast = Link(rate_bps=10**6, rate_down_bps=10**7, delay_us=10_000), Link(rate_bps=10**9, delay_us=1000)
    network = replace(star(3, fast, "nic"), node_links=((1, slow),))
    zero, one, two = network.nodes
    assert network.path(one, zero).rate_bps == 10**6
    assert network.path(zero, one).rate_bps == 10**7
    assert network.path(zero, two).rate_bps == 10**9
    assert network.round_trip_us(zero, one) == 11_000
    assert network.slowest_bps == 10**6
    assert network.total_bps == 2 * 10**9 + 10**6


def test_changes_reach_all_links_or_those_named():
    network = star(3, Link(rate_bps=10**8), "pair")

    def slower(link):
        return replace(link, rate_bps=10**6)

    assert network.change(slower).links == (Link(rate_bps=10**6),)
    only = network.change(slower, nodes=[1])
    assert {(a.index, b.index) for a, b in only.pairs if only.path(a, b).rate_bps == 10**6} == {(1, 0), (1, 2)}
    one = network.change(slower, pairs=[(2, 0)])
    assert {(a.index, b.index) for a, b in one.pairs if one.path(a, b).rate_bps == 10**6} == {(2, 0)}


@pytest.mark.parametrize(("loss", "smallest"), [(0.9, 9), (0.6, 1.5), (0.5, 1), (0.7, 2.34)])
def test_a_loss_in_runs_too_short_for_it_is_refused(loss, smallest):
    """A packet comes between two runs: 90 % in runs of one would lose every other packet."""
    assert Link(loss=loss, loss_burst=smallest).smallest_burst <= smallest + 1e-9
    if smallest > 1:
        with pytest.raises(UsageError, match=rf"the shortest are {smallest} packets"):
            Link(loss=loss, loss_burst=smallest - 0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: star(0, Link(), "nic"),
        lambda: star(251, Link(), "nic"),
        lambda: star(2, Link(), cast(Any, "both")),
        lambda: Link(rate_bps=0),
        lambda: Link(rate_bps=10**12),
        lambda: Link(delay_us=-1),
        lambda: Link(loss=1.0),
        lambda: Link(delay_us=10, jitter_us=-1),
        lambda: Link(jitter_us=10),
        lambda: Link(reorder=0.1),
        lambda: Link(loss_burst=3.0),
        lambda: Link(rate_down_bps=10**6),
        lambda: Link(queue_bytes=1000, queue_us=1000),
        lambda: replace(star(2, Link(), "nic"), node_links=((2, Link()),)),
        lambda: replace(star(2, Link(), "nic"), pair_links=((0, 1, Link()),)),
        lambda: replace(star(2, Link(), "pair"), pair_links=((0, 0, Link()),)),
        lambda: replace(star(2, Link(), "pair"), pair_links=((0, 1, Link(rate_bps=10**6)),)),
        lambda: replace(star(2, Link(), "nic"), node_mtus=((0, 9000),)),
        lambda: replace(star(2, Link(), "nic"), framing=cast(Any, "layer3")),
        lambda: Network(nodes=star(2, Link(), "nic").nodes, link=Link(), accounting="nic", mtu=100),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(UsageError):
        make()
