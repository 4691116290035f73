"""Bytes between ranks: all arrive, all are counted, and ranks that fell out of step are noticed."""

import threading

import pytest
import torch

from testbed.collector.ledger import (
    HEADER_BYTES,
    SocketBytes,
    balance,
    interface_wire_bytes,
    predicted_wire_bytes,
    settle,
    socket_bytes,
)
from testbed.errors import PeerLost
from testbed.parallel.sync import all_reduce, all_reduce_bytes, average
from testbed.parallel.transport import HEAD_BYTES
from tests.ranks import run_ranks


def message_for(sender: int, receiver: int, size: int) -> torch.Tensor:
    return torch.full((size,), 16 * sender + receiver, dtype=torch.uint8)


@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_000])
@pytest.mark.parametrize("ballast", [0, 17, 20_000_000])
def test_every_message_arrives_and_is_counted(size, ballast):
    """Payload, ballast and heads, larger than any socket buffer, all ways at once."""
    world = 3

    def work(transport):
        outgoing = [
            message_for(transport.rank, other, size) if other != transport.rank else None for other in range(world)
        ]
        received = transport.exchange(outgoing, {"kv_forward": 2 * size}, ballast=ballast).wait()
        for sender, message in enumerate(received):
            if sender != transport.rank:
                assert torch.equal(message, message_for(sender, transport.rank, size))
        return dict(transport.sent)

    for sent in run_ranks(world, work):
        assert sent == {"kv_forward": 2 * size, "ballast": 2 * ballast, "other": 2 * HEAD_BYTES}


def test_the_sockets_sent_what_was_handed_over():
    """The ledger's first line, on real connections to two others; and its negative control: a byte more is noticed."""

    def work(transport):
        before = socket_bytes(transport.peers.values())
        message = torch.zeros(100_000, dtype=torch.uint8)
        outgoing = [None if other == transport.rank else message for other in range(3)]
        transport.exchange(outgoing, {"kv_forward": 200_000}, ballast=5_000_000).wait()
        assert settle(transport.peers.values())
        spent = socket_bytes(transport.peers.values()).since(before)
        handed = sum(transport.sent.values())
        assert spent.segments >= 2 * 100_000 // 65_536
        return balance(handed, spent, None), balance(handed + 1, spent, None)

    for problems, with_a_byte_more in run_ranks(3, work):
        assert problems == []
        assert "handed to the sockets" in with_a_byte_more[0]


@pytest.mark.parametrize(
    ("wire", "balanced"), [(1_066_000, True), (1_076_000, True), (1_080_000, False), (1_000_000, False)]
)
def test_the_wire_must_carry_what_the_sockets_sent(wire, balanced):
    """Within 1 % of bytes and headers; traffic past the sockets or past the shaper is neither."""
    sockets = SocketBytes(acked=1_000_000, sent=1_000_000, resent=0, segments=1000)
    assert (balance(1_000_000, sockets, wire) == []) is balanced


def test_what_the_own_queue_dropped_is_not_on_the_wire():
    """TCP counts it as sent; the wire may lack it, but no more than it."""
    sockets = SocketBytes(acked=1_000_000, sent=1_300_000, resent=0, segments=1200)
    assert balance(1_000_000, sockets, 1_100_000, drops=5) == []
    assert balance(1_000_000, sockets, 1_100_000, drops=0) != []
    assert balance(1_000_000, sockets, 900_000, drops=5) != []


def test_segments_are_as_long_as_the_path_allows():
    """Of 9000 bytes there are fewer headers, of 576 more."""
    sockets = SocketBytes(acked=10_000_000, sent=10_500_000, resent=0, segments=20_100)
    headers = HEADER_BYTES * (10_000_000 // 524)
    assert balance(10_000_000, sockets, 10_000_000 + headers, drops=5, segment_bytes=524) == []
    assert balance(10_000_000, sockets, 10_456_000, drops=5, segment_bytes=524) != []
    large = SocketBytes(acked=10_000_000, sent=10_100_000, resent=0, segments=1_130)
    assert balance(10_000_000, large, 10_080_000, drops=5, segment_bytes=8948) == []


def test_the_interface_must_agree_with_the_shaper():
    """Its own count has one header for each of 100 super-packets of 8 segments; the wire has 800."""
    sockets = SocketBytes(acked=1_000_000, sent=1_000_000, resent=0, segments=800)
    wire = predicted_wire_bytes(sockets)
    interface = 1_000_000 + 100 * HEADER_BYTES
    corrected = interface_wire_bytes(interface, 100, 800)
    assert corrected == wire
    assert balance(1_000_000, sockets, wire, interface_bytes=corrected) == []
    assert "the interface" in balance(1_000_000, sockets, wire, interface_bytes=interface)[0]


def test_ranks_out_of_step_are_noticed():
    """A head that is not the expected one stops the rank instead of mixing messages up."""

    def work(transport):
        size = 100 + transport.rank
        outgoing = [None if other == transport.rank else torch.zeros(size, dtype=torch.uint8) for other in range(2)]
        transport.exchange(outgoing, {"kv_forward": size}).wait()

    with pytest.raises(AssertionError, match="not in step"):
        run_ranks(2, work)


def test_a_lost_peer_is_named():
    """The other end's rank stands in the error."""
    gone = threading.Event()

    def work(transport):
        if transport.rank == 1:
            transport.close()
            gone.set()
            return
        gone.wait(30)
        outgoing = [None, torch.zeros(10, dtype=torch.uint8)]
        transport.exchange(outgoing, {"kv_forward": 10}).wait()

    with pytest.raises(PeerLost, match="rank 0 lost its connection to rank 1"):
        run_ranks(2, work)


@pytest.mark.parametrize("numbers", [1, 7, 1000])
def test_all_reduce_is_the_sum_in_rank_order_on_every_rank(numbers):
    """Bit for bit the left-to-right sum, everywhere; bytes as the closed form says."""
    world = 4
    values = [torch.randn(numbers, generator=torch.Generator().manual_seed(rank)) for rank in range(world)]

    def work(transport):
        return all_reduce(values[transport.rank], transport), dict(transport.sent)

    expected = torch.zeros(numbers)
    for value in values:
        expected += value
    for total, sent in run_ranks(world, work):
        assert torch.equal(total, expected)
        assert sent["weights"] == 2 * all_reduce_bytes(numbers, world, 4) * (world - 1)


def test_average_of_equal_weights_is_those_weights():
    """Averaging twice changes nothing, to the bit, for a power-of-two number of ranks."""
    weights = torch.randn(100, generator=torch.Generator().manual_seed(0))
    for mean in run_ranks(4, lambda transport: average(weights, transport)):
        assert torch.equal(mean, weights)
