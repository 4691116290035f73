"""What is known of shapers, counters and networks where it crosses a pipe or is kept as JSON; units stand in names."""

from typing import NotRequired, TypedDict

__all__ = [
    "CounterPlace",
    "DeviceOf",
    "NetworkFacts",
    "NodeFacts",
    "NodeReadback",
    "Readback",
    "ShaperFacts",
    "ToolRow",
]


class ShaperFacts(TypedDict, total=False):
    """A qdisc or a class, as the kernel has it or should have it; each kind has facts of its own."""

    kind: str
    ifindex: int
    handle: int
    parent: int
    info: int
    limit_packets: int
    limit_bytes: int
    rate_bps: int
    ceil_bps: int
    peak_bps: int
    overhead_bytes: int
    burst_bytes: int
    cburst_bytes: int
    peak_burst_bytes: int
    default_class: int
    delay_us: int
    jitter_us: int
    loss_share: float
    reorder_share: float
    gemodel_enter_share: float
    gemodel_leave_share: float
    bytes: int
    packets: int
    drops: int
    backlog_bytes: int
    overlimits: int
    mtu: int
    gso_max_segs: int
    leaf: "ShaperFacts"
    """The netem behind a bucket."""
    classes: dict[str, "ShaperFacts"]
    """By minor number, in hexadecimal."""
    filters: list[str]
    """`10.77.0.2 -> 2`: one destination to a class."""
    others: list[str]
    """Kinds of whatever else is on the device."""


class DeviceOf(TypedDict):
    """A device of a namespace."""

    netns: str
    device: str


class CounterPlace(TypedDict):
    """Where any process of the world finds the counters of a node."""

    kind: str
    """netns: it opens them there; passed: another hands them over; host: there are none."""
    node: str
    tx: NotRequired[DeviceOf]
    rx: NotRequired[DeviceOf]
    index: NotRequired[int]
    socket: NotRequired[str]
    """passed: by whom."""
    delays: NotRequired[str | None]
    """The file in which the delay line counts."""
    mtu: NotRequired[int]


class NodeReadback(TypedDict, total=False):
    """A node's shapers, or that it has none."""

    tx: ShaperFacts
    rx: ShaperFacts
    unshaped: bool


class ToolRow(TypedDict, total=False):
    """A link, route, rule or qdisc, as ip(8) and tc(8) print them as JSON; each kind has keys of its own."""

    ifname: str
    ifindex: int
    ifalias: str
    flags: list[str]
    mtu: int
    gso_max_segs: int
    dst: str
    dev: str
    priority: int
    src: str
    iif: str
    table: str
    action: str
    kind: str
    handle: str
    parent: str
    options: dict[str, list[dict[str, str]]]
    """Of a filter: its actions."""


class Readback(TypedDict):
    """What a kernel has of a network."""

    nodes: dict[str, NodeReadback]
    """By name."""
    cuts: list[ToolRow]
    """The switch's rules that faults have put there."""
    delay_line: list[str]
    """The rules that lead packets to it, and what it holds for each queue and rate."""


class NodeFacts(TypedDict):
    """A node by name and IPv4 address."""

    name: str
    address: str


class NetworkFacts(TypedDict, total=False):
    """What a record of a run says about the network."""

    backend: str
    shaped: bool
    accounting: str
    framing: str
    framing_bytes: int
    rate_bps: int | None
    goodput_expected_bps: float | None
    delays: str | None
    delay_line_priority: str | None
    delay_line: list[str]
    mtu: int
    congestion_control: list[str]
    sysctls: list[str]
    nodes: list[NodeFacts]
    note: str
    shaped_by: str
    image: str
    image_id: str | None
    shaper_image_id: str | None
