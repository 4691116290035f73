"""Measurements as a network would give them, made up."""

from collections.abc import Sequence

from emulation.measure.measurement import Goodput, Measurement, Proof, RoundTrip

__all__ = ["measurement", "proof"]


def measurement(links: Sequence[Goodput], round_trips: Sequence[RoundTrip] = ()) -> Measurement:
    """Of these links and round trips."""
    return Measurement(
        rate_bps=None,
        accounting="nic",
        framing="layer2",
        nodes=2,
        expected_goodput_bps=None,
        warm_seconds=0.1,
        window_seconds=1.0,
        links=tuple(links),
        round_trips=tuple(round_trips),
        losses=(),
        aggregate_bps=0,
        wall_seconds=1.0,
    )


def proof(links: Sequence[Goodput]) -> Proof:
    """That these links are what was asked."""
    return Proof(**vars(measurement(links)), ok=True, problems=(), tolerance={}, attempts=())
