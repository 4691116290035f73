"""netem(8): delay, jitter, loss and reordering by the kernel, where it has that module.

It stands behind the shaper, as the queue of a token bucket or of a class, and holds what waits for the shaper too.
Its limit is in packets, a super-packet counting as one: queue plus bandwidth-delay product.
"""

from dataclasses import dataclass
from typing import Self, get_args

from emulation.kernel.facts import ShaperFacts
from emulation.spec.network import Distribution, Link

__all__ = ["Netem"]


@dataclass(frozen=True, kw_only=True)
class Netem:
    """One netem qdisc."""

    limit_packets: int
    delay_us: int = 0
    jitter_us: int = 0
    distribution: Distribution = "normal"
    loss: float = 0.0
    loss_burst: float | None = None
    reorder: float = 0.0

    @classmethod
    def of(cls, link: Link, limit_packets: int) -> Self:
        """What `link` adds to its rate."""
        return cls(
            limit_packets=limit_packets,
            delay_us=link.delay_us,
            jitter_us=link.jitter_us,
            distribution=link.distribution,
            loss=link.loss,
            loss_burst=link.loss_burst,
            reorder=link.reorder,
        )

    @property
    def variant(self) -> int:
        """1 to 6: what an existing netem keeps when it is changed without it, its jitter's table and reordering."""
        return 1 + 2 * get_args(Distribution).index(self.distribution) + bool(self.reorder)

    def words(self) -> str:
        """What follows the handle on a tc line."""
        words = f"netem limit {self.limit_packets} delay {self.delay_us}us"
        if self.jitter_us:
            words += f" {self.jitter_us}us"
            words += "" if self.distribution == "uniform" else f" distribution {self.distribution}"
        if self.loss and self.loss_burst is None:
            words += f" loss random {self.loss * 100:.6f}%"
        elif self.loss:
            enter, leave = self.gilbert_elliott()
            words += f" loss gemodel {enter * 100:.6f}% {leave * 100:.6f}% 100% 0%"
        if self.reorder:
            words += f" reorder {self.reorder * 100:.6f}%"
        return words

    def gilbert_elliott(self) -> tuple[float, float]:
        """Probabilities per packet to enter and to leave the state in which every packet is lost.

        Of mean loss L and mean run B: leave = 1/B, and L = enter / (enter + leave) (Gilbert 1960, Elliott 1963).
        """
        assert self.loss_burst is not None
        leave = 1.0 / self.loss_burst
        return self.loss * leave / (1.0 - self.loss), leave

    def expected(self) -> ShaperFacts:
        """What the kernel should report; probabilities in its own unit, 2^32 - 1 being certainty."""
        expected: ShaperFacts = {
            "kind": "netem",
            "limit_packets": self.limit_packets,
            "delay_us": self.delay_us,
            "jitter_us": self.jitter_us,
            "loss_share": 0.0 if self.loss_burst else round(self.loss, 6),
            "reorder_share": round(self.reorder, 6),
        }
        if self.loss and self.loss_burst is not None:
            enter, leave = self.gilbert_elliott()
            expected["gemodel_enter_share"], expected["gemodel_leave_share"] = round(enter, 6), round(leave, 6)
        return expected
