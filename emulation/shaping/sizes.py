"""How deep buckets and queues are, and how large a super-packet may be, for a rate and a round trip.

A token bucket passes at once what it holds: after a pause a deep one hides a whole message, while a shallow one
loses what it could not hold whenever the kernel's timer wakes late. Two buckets solve it: the first, of the asked
rate, is deep, so that nothing is lost; the second, of a slightly higher rate, holds a few packets, so that even the
first bytes after a pause leave at nearly the asked rate. How tight the second is depends on the messages of interest:

    small    at most 64 KiB: 3 % over the rate, a super-packet and 60 us of the rate at once. Messages of any size take
             the time that they should, within 5 % and 4 frames, on a machine that is otherwise idle.
    unknown  5 % over the rate, 300 us at once: a busy machine still carries the rate.
    large    the second holds 5 % of the smallest message, and the deep one makes up for a busy machine undisturbed.

TCP hands super-packets to a shaper, which passes them whole. Fine ones cost processor time, coarse ones are bursts:
they are as fine as a budget of packets per second for all links together allows, but not finer than 2 % of the
smallest message of interest needs.
"""

import math
from dataclasses import dataclass

from emulation.network import FRAMING_BYTES, Link, Network

__all__ = ["PEAK", "Sizes", "segments_of", "sizes"]

PEAK, TIGHT_PEAK = 1.05, 1.03
"""The second bucket's rate over the first's."""
TIMER_SECONDS, TIGHT_TIMER_SECONDS = 300e-6, 60e-6
"""How late the kernel's timers may wake a shaper without loss; on an idle machine 50 us are usual."""
SMALL_MESSAGE_BYTES = 64 * 1024
SUPER_PACKETS_PER_SECOND, TIGHT_SUPER_PACKETS_PER_SECOND = 20_000, 60_000
"""What two cores pass, all links together, and still train beside it; and what they pass at most."""
IMPAIRED_SHARE = 0.5
"""Of that, where each super-packet also passes the delay line."""
MOST_SEGMENTS = 44
"""64 KiB at MTU 1500, the most that the kernel makes by default."""
GRAIN_SECONDS = 0.002
"""A super-packet is never longer than this at its rate, two packets apart."""
MESSAGE_SHARE, BURST_SHARE = 0.02, 0.05
"""Of the smallest message: what a super-packet, and what the second bucket, may be."""
DEEPEST_QUEUE_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of one shaper, in bytes as the rate counts them."""

    burst_bytes: int
    """The deep bucket: 10 ms at the rate to 64 KiB, 3.5 ms to 128 KiB, then 1 ms; what was lost to late timers is made
    up from it."""
    peak_bps: int
    """What passes per second at most, while it is."""
    peak_bytes: int
    """What passes at once: a super-packet, and what the peak rate sends while a timer is late."""
    queue_bytes: int
    """40 ms or a round trip at the rate, whichever is longer, at least 20 frames."""


def segments_of(network: Network, node: int) -> int:
    """How many packets TCP may put into a super-packet on this node: gso_max_segs."""
    source = network.nodes[node]
    paths = [network.path(source, peer) for peer in network.peers(source)]
    rates = [path.rate_bps for path in paths if path.rate_bps is not None]
    if network.framing == "ethernet" or any(path.packetwise for path in paths):
        return 1  # what a rate counts beside layer 2 is counted once per super-packet; so is a loss
    if not rates:
        return MOST_SEGMENTS
    frame_bits = (network.mtu + FRAMING_BYTES[network.framing]) * 8
    budget = TIGHT_SUPER_PACKETS_PER_SECOND if _tight(network) else SUPER_PACKETS_PER_SECOND
    affordable = math.ceil(network.total_bps / (budget * (IMPAIRED_SHARE if network.impaired else 1) * frame_bits))
    wanted = int((network.smallest_message_bytes or 0) * 8 * MESSAGE_SHARE / frame_bits)
    longest = int(min(rates) * GRAIN_SECONDS / frame_bits)
    return max(2, min(MOST_SEGMENTS, max(affordable, wanted), longest))


def _tight(network: Network) -> bool:
    smallest = network.smallest_message_bytes
    return smallest is not None and smallest <= SMALL_MESSAGE_BYTES


def sizes(network: Network, rate_bps: int, link: Link, segments: int, round_trip_us: int) -> Sizes:
    """Buckets and queue of a shaper of `rate_bps`, before which super-packets of `segments` packets wait."""
    frame = network.mtu + FRAMING_BYTES[network.framing]
    smallest = network.smallest_message_bytes
    tight = _tight(network)
    peak_bps = int(rate_bps * (TIGHT_PEAK if tight else PEAK))
    peak = segments * frame + int(peak_bps * (TIGHT_TIMER_SECONDS if tight else TIMER_SECONDS) / 8)
    deep = max(
        5 * frame,
        min(64 * 1024, int(rate_bps * 0.010 / 8)),
        min(128 * 1024, int(rate_bps * 0.0035 / 8)),
        int(rate_bps * 0.001 / 8),
        2 * peak,
    )
    peak = max(peak, min(deep, int((smallest or 0) * BURST_SHARE)))
    if link.queue_bytes is not None:
        queue = link.queue_bytes
    else:
        seconds = max(0.040, round_trip_us / 1e6) if link.queue_us is None else link.queue_us / 1e6
        queue = max(20 * frame, int(rate_bps * seconds / 8))
    return Sizes(
        burst_bytes=deep,
        peak_bps=peak_bps,
        peak_bytes=peak,
        queue_bytes=max(segments * frame, min(queue, DEEPEST_QUEUE_BYTES)),
    )
