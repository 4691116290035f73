"""How deep buckets and queues are, and how large a super-packet may be, for a rate and a round trip.

A token bucket passes at once what it holds: after a pause a deep one hides a whole small message, while a shallow one
loses what it could not hold whenever the kernel's timer wakes late. So it depends on the messages of interest:

    small    at most 64 KiB: two buckets. A deep one of the asked rate, from which late wake-ups are made up, and a
             second one, 5 % over the rate, that holds a super-packet and 60 us of the rate: even the first bytes after
             a pause leave at the asked rate within 5 % and 4 frames. A busy machine may not carry such a link.
    larger, or unknown   one bucket of 3.5 ms at the rate, but no more than 5 % of the smallest message.

TCP hands super-packets to a shaper, which passes them whole. Fine ones cost processor time, coarse ones are bursts:
they are as fine as a budget of packets per second for all links together allows, but not finer than 2 % of the
smallest message of interest needs.
"""

import math
from dataclasses import dataclass

from emulation.spec.network import FRAMING_BYTES, Link, Network

__all__ = ["PEAK", "Sizes", "relay_segments", "segments_of", "sizes"]

PEAK = 1.05
"""The second bucket's rate over the first's."""
TIMER_SECONDS = 60e-6
"""How late the kernel's timers wake a shaper on an idle machine, nearly always."""
SMALL_MESSAGE_BYTES = 64 * 1024
SUPER_PACKETS_PER_SECOND, TIGHT_SUPER_PACKETS_PER_SECOND = 20_000, 60_000
"""What two cores pass, all links together, and still train beside it; and what they pass at most."""
IMPAIRED_SHARE = 0.25
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
    """The deep bucket: 3.5 ms at the rate to 128 KiB, then 1 ms; 10 ms to 64 KiB where there are two."""
    peak_bps: int
    """What passes per second at most, while it is."""
    peak_bytes: int
    """What passes at once; the same as the deep bucket where one is enough."""
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


def relay_segments(network: Network) -> int:
    """The same where a relay serves packets at rates of up to those of `network`: as few as it has time for, since a
    link that is slow for a moment passes them as one."""
    if any(link.packetwise for link in network.links):
        return 1
    frame_bits = (network.mtu + FRAMING_BYTES[network.framing]) * 8
    affordable = math.ceil(network.total_bps / (SUPER_PACKETS_PER_SECOND * IMPAIRED_SHARE * frame_bits))
    return min(MOST_SEGMENTS, max(1, affordable))


def _tight(network: Network) -> bool:
    smallest = network.smallest_message_bytes
    return smallest is not None and smallest <= SMALL_MESSAGE_BYTES


def sizes(network: Network, rate_bps: int, link: Link, segments: int, round_trip_us: int) -> Sizes:
    """Buckets and queue of a shaper of `rate_bps`, before which super-packets of `segments` packets wait."""
    frame = network.mtu + FRAMING_BYTES[network.framing]
    deep = max(5 * frame, min(128 * 1024, int(rate_bps * 0.0035 / 8)), int(rate_bps * 0.001 / 8), segments * frame)
    peak_bps = int(rate_bps * PEAK)
    if _tight(network):
        peak = segments * frame + int(peak_bps * TIMER_SECONDS / 8)
        deep = max(deep, min(64 * 1024, int(rate_bps * 0.010 / 8)), 2 * peak)
    else:
        share = int((network.smallest_message_bytes or deep / BURST_SHARE) * BURST_SHARE)
        peak = deep = max(min(deep, share), segments * frame, 5 * frame)
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
