"""What a node's counters said of a step, made up."""

from testbed.records import Spent

__all__ = ["SPENT"]

SPENT = Spent(
    payload_bytes={"weights": 8},
    acked=8,
    sent=8,
    resent=0,
    segments=1,
    predicted_wire_bytes=9,
    wire_tx_bytes=9,
    wire_rx_bytes=9,
    interface_tx_bytes=9,
    queue_drops=0,
    relay_drops=0,
    backlog_bytes=0,
    fidelity={},
    suspect=(),
    problems=(),
)
