"""The kernel's counters as it sends them, beyond 32 bits."""

import struct

import pytest

from emulation.kernel.netlink import _statistics


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


@pytest.mark.parametrize("packets", [5, 2**32 - 1, 2**32 + 5, 2**40])
def test_packets_go_on_beyond_32_bits(packets):
    """The old field holds the lower half (linux/gen_stats.h); the wider one is there once that is not all."""
    data = attribute(1, struct.pack("=QI", 2**50, packets % 2**32))
    data += attribute(3, struct.pack("=IIIII", 0, 7, 3, 0, 0))
    if packets >= 2**32:
        data += attribute(8, struct.pack("=Q", packets))
    found = _statistics(data, 0, len(data))
    assert (found["bytes"], found["packets"], found["drops"], found["backlog_bytes"]) == (2**50, packets, 3, 7)
