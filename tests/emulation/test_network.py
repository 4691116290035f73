"""What a network is, and what its rates imply."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation.errors import UsageError
from emulation.network import Link, Network, burst_bytes, goodput_bps, gso_bytes, queue_bytes, star


def test_a_star_numbers_and_addresses_its_nodes():
    network = star(3, Link(), "pair")
    assert [node.name for node in network.nodes] == ["n0", "n1", "n2"]
    assert [node.address for node in network.nodes] == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
    assert [node.index for node in network.peers(network.nodes[1])] == [0, 2]


def test_goodput_is_1448_of_1514_bytes():
    assert goodput_bps(300e6) == pytest.approx(300e6 * 1448 / 1514)
    assert goodput_bps(300e6, mtu=9000) == pytest.approx(300e6 * 8948 / 9014)


@given(st.integers(5_000_000, 10**10))
def test_a_bucket_holds_milliseconds_and_a_queue_at_most_fifty(rate):
    assert burst_bytes(rate) * 8 / rate <= 0.0125
    assert queue_bytes(rate) * 8 / rate <= 0.050
    assert gso_bytes(rate) * 8 / rate <= 0.005
    assert burst_bytes(rate) >= gso_bytes(rate) or burst_bytes(rate) >= 128 * 1024


def test_a_fast_links_bucket_holds_two_super_packets():
    assert burst_bytes(300_000_000) == pytest.approx(128 * 1024, rel=0.002)
    assert burst_bytes(10**10) == 1_250_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: star(0, Link(), "nic"),
        lambda: star(251, Link(), "nic"),
        lambda: star(2, Link(), "both"),
        lambda: Link(rate_bps=0),
        lambda: Link(rate_bps=10**12),
        lambda: Link(delay_us=-1),
        lambda: Link(loss=1.0),
        lambda: Network(nodes=star(2, Link(), "nic").nodes, link=Link(), accounting="nic", mtu=100),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(UsageError):
        make()
