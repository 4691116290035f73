"""Nodes in network namespaces around a switch namespace that forwards; to be built inside a world.

    n0: eth0 ──veth── sw0 ┐
    n1: eth0 ──veth── sw1 ┤ routes (namespace "switch")
    n2: eth0 ──veth── sw2 ┘

The switch forwards IPv4 by static routes, so that a packet passes the sender's shaper, the delay line (netfilter's
FORWARD) and the receiver's shaper, in this order, on any kernel, and is time-stamped by its receiver behind all of
them. Neighbours are static and IPv6 is off, so an idle link carries no byte.
"""

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from emulation.errors import CapabilityError, LinkError
from emulation.kernel.commands import ToolBatch, run_all, tool_path, write_sysctl
from emulation.kernel.facts import CounterPlace, NetworkFacts, NodeReadback, Readback, ShaperFacts
from emulation.kernel.syscalls import in_netns, named, netns_path
from emulation.nodes.base import Backend
from emulation.nodes.isolation import check_isolation
from emulation.nodes.names import PREFIX_LENGTH, name_nodes, node_lines, processes_in, switch_lines
from emulation.nodes.readback import (
    CUT_PRIORITY,
    SWITCH,
    cut_differences,
    has_ipv6,
    port_of,
    read_cuts,
    read_devices,
    steering,
    try_netem,
)
from emulation.shaping import tc
from emulation.shaping.delays import DelayLine
from emulation.shaping.rules import Rule, delay_rules, relay_rates, relay_rules, with_room
from emulation.shaping.sizes import relay_segments, segments_of
from emulation.spec.network import FRAMING_BYTES, Network, Node, goodput_bps
from emulation.spec.units import format_rate

__all__ = ["SWITCH", "NetnsBackend"]

DEFAULT_CONGESTION_CONTROL = "reno"
TCP_SYSCTLS = (
    "net.ipv4.tcp_wmem=4096 4194304 67108864",
    "net.ipv4.tcp_rmem=4096 4194304 67108864",
    "net.ipv4.tcp_slow_start_after_idle=0",
    "net.ipv4.tcp_no_metrics_save=1",
)
"""Room for rate × delay in flight; a step's first bytes go out as fast as the last step's did."""
FORWARDING = (
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv4.conf.all.send_redirects=0",
    "net.ipv4.conf.default.send_redirects=0",
    "net.ipv4.ip_forward=1",
)
IPV6_OFF = ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")


class NetnsBackend(Backend):
    """A network of namespaces. `with NetnsBackend(network) as backend:` inside `run_in_world`."""

    interface = "eth0"

    def __init__(self, network: Network, *, delays: Literal["netem", "delay line"] | None = None) -> None:
        super().__init__(network)
        self.delays = delays
        """What delays and loses packets; None: netem where this kernel has it, which is tried when it is needed."""
        self._is_open = False
        self._highest: Network | None = None
        """Links with the most that they are to have while rates are the delay line's …"""
        self._follows = False
        """… which they are now."""
        self._handle = 0
        self._congestion_control: dict[str, str] = {}
        self._down: set[int] = set()
        self._groups: list[set[int]] = []
        self._cut: set[tuple[Node, Node]] = set()
        self._given: frozenset[str] = frozenset()
        """Namespaces that are there before."""
        self._lock = threading.RLock()
        """Held while links or faults change, and while they are compared: a schedule has a thread of its own."""
        self.delay_line = DelayLine(SWITCH, len(network.nodes), at=self.at)

    # -- life

    def open(self) -> None:
        try:
            self._is_open = True
            self._prepare()
            self._name_nodes()
            run_all(self._build_batches(), self.at)
            self._congestion_control = {node.name: self._choose_congestion_control(node) for node in self.network.nodes}
            self.shape(self.network)
            self.check_readback()
            self.check_isolated()
        except BaseException:
            self.close()
            raise

    def _name_nodes(self) -> None:
        name_nodes(self.network)

    def _prepare(self) -> None:
        """What has to be there before the first command."""
        self.delay_line.prepare()

    def close(self) -> None:
        """Delete the namespaces; what still runs in one keeps it alive until the world ends."""
        if self._is_open:
            self._is_open = False
            self.delay_line.close()
            self._delete()

    def _delete(self) -> None:
        argv = [tool_path("ip") or "ip", "-force", "-batch", "-"]
        lines = [f"netns del {name}\n" for name in self.namespaces]
        subprocess.run(argv, input="".join(lines), text=True, capture_output=True, check=False)

    # -- building

    def _build_batches(self) -> list[ToolBatch]:
        nodes, names = self.network.nodes, self.namespaces
        settings = (tuple(line for line in IPV6_OFF if has_ipv6()), steering())
        made = [name for name in names if name not in self._given]
        batches = [ToolBatch(tool="ip", netns=None, lines=tuple(f"netns add {name}" for name in made))] if made else []
        batches += [ToolBatch(tool="sysctl", netns=name, lines=each) for each in settings for name in names if each]
        batches.append(ToolBatch(tool="sysctl", netns=SWITCH, lines=FORWARDING))
        batches.append(ToolBatch(tool="ip", netns=SWITCH, lines=tuple(switch_lines(self.network))))
        for node in nodes:
            batches.append(ToolBatch(tool="ip", netns=node.name, lines=tuple(node_lines(self.network, node))))
            batches.append(ToolBatch(tool="sysctl", netns=node.name, lines=TCP_SYSCTLS))
        return batches

    def _choose_congestion_control(self, node: Node) -> str:
        """Set it by sysctl, or, where that is not allowed, on the route; the name and how it was set."""
        wanted = self.network.congestion_control or DEFAULT_CONGESTION_CONTROL
        try:
            self.at(node.name, write_sysctl, "net.ipv4.tcp_congestion_control", wanted)
            return wanted
        except CapabilityError:
            subnet = node.address.rpartition(".")[0] + f".0/{PREFIX_LENGTH}"
            line = f"route replace {subnet} dev eth0 proto kernel scope link src {node.address} congctl {wanted}"
            run_all([ToolBatch(tool="ip", netns=node.name, lines=(line,))], self.at)
            return f"{wanted} (by route)"

    # -- shaping

    def shape(self, network: Network) -> None:
        """Make the links be those of `network`, now; counters restart at zero with the new shapers.

        Each shaper is grafted in one step; with accounting "pair" its classes follow within microseconds,
        during which packets meet 1 Mbit/s: shape between steps, not during one.
        """
        with self._lock:
            self._same_nodes(network)
            self._follows = False
            self._handle = self._handle % tc.LAST_HANDLE + 1
            self._apply_delays(network)  # first, so that nothing passes without its delay
            run_all(self._shape_batches(network), self.at)
            self.network = network

    def change(self, network: Network, at_ns: int | None = None) -> None:
        """Alter links in place: queues, counters and what is on its way stay.

        But an unshaped link counts anew when a netem comes or goes, and what waits in a netem is lost when its kind of
        jitter changes, or whether it reorders: no kernel changes these in place.
        """
        with self._lock:
            self._same_nodes(network)
            if not self._follows:
                run_all(self._shape_batches(network, self.network), self.at)
            self._apply_delays(network, at_ns)
            self.network = network

    def follow(self, highest: Network | None) -> None:
        """Let the delay line hold the rates from now on, so that they may change at any time, up to those of `highest`;
        None: the kernel's shapers again, with the rates as they are now.

        Meanwhile these let through a quarter more than the highest rates.
        """
        with self._lock:
            before = self._in_kernel(self.network)
            self._follows = highest is not None
            if highest is not None:
                self._highest = with_room(highest)
                self._apply_delays(self.network)  # first, so that no link is without its rate
            run_all(self._shape_batches(self._in_kernel(self.network), before), self.at)
            self._apply_delays(self.network)

    def _in_kernel(self, network: Network) -> Network:
        """The links as the kernel's shapers have them."""
        return self._highest if self._follows and self._highest is not None else network

    def _apply_delays(self, network: Network, at_ns: int | None = None) -> None:
        if self._follows and self._highest is not None:
            rules, rates = relay_rules(network), relay_rates(network, self._highest)
        else:
            rules, rates = self._delay_rules(network), []
        if rules != self.delay_line.rules or rates != self.delay_line.rates:
            self.delay_line.apply(rules, rates, at_ns)

    def _same_nodes(self, network: Network) -> None:
        assert network.nodes == self.network.nodes, "links change, nodes do not"

    def _shape_batches(self, network: Network, before: Network | None = None) -> list[ToolBatch]:
        """New shapers for `network`; or, with `before`, only what is different from there."""
        batches, switch_lines = [], []
        for node in network.nodes:
            shapers = list(zip(("eth0", port_of(node)), self._shapers(network, node), strict=True))
            segments = self._segments(network, node)
            if before is None:
                egress, ingress = (shaper.lines(device, self._handle) for device, shaper in shapers)
            else:
                egress, ingress = (
                    tc.change_lines(was, shaper, device, self._handle)
                    for was, (device, shaper) in zip(self._shapers(before, node), shapers, strict=True)
                )
            if before is None or segments != self._segments(before, node):
                line = f"link set dev eth0 gso_max_segs {segments}"
                batches.append(ToolBatch(tool="ip", netns=node.name, lines=(line,)))
            batches.append(ToolBatch(tool="tc", netns=node.name, lines=tuple(egress)))
            switch_lines += ingress
        batches.append(ToolBatch(tool="tc", netns=SWITCH, lines=tuple(switch_lines)))
        return [batch for batch in batches if batch.lines]

    def _shapers(self, network: Network, node: Node) -> tuple[tc.Shaper, tc.Shaper]:
        return tc.node_shapers(network, node, netem=self._by_netem(network))

    def _segments(self, network: Network, node: Node) -> int:
        """Packets that TCP may put into one."""
        return relay_segments(network) if network is self._highest else segments_of(network, node.index)

    def _by_netem(self, network: Network) -> bool:
        """Whether netem delays; found out by trying it, inside the world, when a delay is first asked for."""
        if network.impaired and self.delays is None:
            self.delays = "netem" if self._is_open and self.at(SWITCH, try_netem) else "delay line"
        if network is self._highest:
            return False  # the delay line delays what it serves
        if network.accounting == "pair" and not network.shaped and not network.uniform:
            return False  # without rates a node has one queue for all pairs, and one netem would delay them alike
        return network.impaired and self.delays == "netem"

    @property
    def delays_used(self) -> str | None:
        if not self.network.impaired or self.delays is None:
            return None
        return "netem" if self._by_netem(self.network) else "delay line"

    def _delay_rules(self, network: Network) -> list[Rule]:
        return [] if self._by_netem(network) else delay_rules(network)

    def readback(self) -> Readback:
        with self._lock:
            found: dict[str, NodeReadback] = {}
            ports = self.at(SWITCH, read_devices, [port_of(node) for node in self.network.nodes])
            for node in self.network.nodes:
                own = self.at(node.name, read_devices, ["eth0"])["eth0"]
                found[node.name] = {"tx": own, "rx": ports[port_of(node)]}
            rules = self.delay_line.read_rules() if self.delay_line.rules else []
            return {"nodes": found, "cuts": self.at(SWITCH, read_cuts), "delay_line": rules}

    def check_isolated(self) -> None:
        check_isolation(self.network, self.at)

    def check_readback(self, readback: Readback | None = None) -> Readback:
        with self._lock:
            found = self.readback() if readback is None else readback
            problems: list[str] = []
            for node in self.network.nodes:
                kernels = self._in_kernel(self.network)
                own = found["nodes"][node.name]
                ends = (("tx", own["tx"]), ("rx", own["rx"]))
                for (end, has), shaper in zip(ends, self._shapers(kernels, node), strict=True):
                    expected: ShaperFacts = {**shaper.expected(), "mtu": self.network.mtu_of(node)}
                    if end == "tx":
                        expected["gso_max_segs"] = self._segments(kernels, node)
                    problems += tc.differences(expected, has, f"{node.name} {end}")
            problems += cut_differences(self._cut, found["cuts"])
            rules, wanted = found["delay_line"], self.delay_line.lines()
            if rules != wanted:
                problems.append(f"the delay line's rules should be {wanted}, the kernel has {rules}")
        if problems:
            rate = self.network.slowest_bps
            asked = format_rate(rate) if rate else "an unshaped link"
            raise LinkError(
                f"{asked} was asked for ({self.network.accounting}), but " + "; ".join(problems[:4]) + ". "
                "Something else changed the shapers, or this kernel cannot hold them: "
                "try again, then another rate."
            )
        self.check_alive()
        return found

    def check_alive(self) -> None:
        self.delay_line.check()

    # -- faults

    def link_down(self, node: Node) -> None:
        with self._lock:
            self._down.add(node.index)
            self._forward()

    def link_up(self, node: Node) -> None:
        with self._lock:
            self._down.discard(node.index)
            self._forward()

    def partition(self, groups: Sequence[Sequence[Node]]) -> None:
        with self._lock:
            self._groups = [{node.index for node in group} for group in groups]
            self._forward()

    def heal(self) -> None:
        with self._lock:
            self._groups = []
            self._forward()

    def _forward(self) -> None:
        """Tell the switch which pairs it serves: policy routing drops the others' packets (ip-rule(8), blackhole)."""
        groups = self._groups or [{node.index for node in self.network.nodes}]
        cut = {
            (source, target)
            for source, target in self.network.pairs
            if {source.index, target.index} & self._down
            or not any({source.index, target.index} <= group for group in groups)
        }
        rule = f"rule {{}} pref {CUT_PRIORITY} iif {{}} to {{}}/32 blackhole"
        lines = [rule.format("add", port_of(a), b.address) for a, b in sorted(cut - self._cut, key=str)]
        lines += [rule.format("del", port_of(a), b.address) for a, b in sorted(self._cut - cut, key=str)]
        if lines:
            run_all([ToolBatch(tool="ip", netns=SWITCH, lines=tuple(lines))], self.at)
        self._cut = cut

    def signal(self, node: Node, number: int) -> None:
        for pid in processes_in(node.name):
            with suppress(OSError):
                os.kill(pid, number)

    # -- using

    @property
    def namespaces(self) -> list[str]:
        return [SWITCH, *(node.name for node in self.network.nodes)]

    def environment(self, node: Node) -> dict[str, str]:
        return super().environment(node) | {"HOSTNAME": node.name}

    def popen(
        self, node: Node, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **popen_kwargs: Any
    ) -> subprocess.Popen[Any]:
        nsenter = tool_path("nsenter") or "nsenter"
        command = [nsenter, f"--net={netns_path(node.name)}", "--", *argv]
        # it is born there: a signal to the node's processes finds it at once
        with in_netns(node.name), named(node.name):
            return subprocess.Popen(command, env=env, **popen_kwargs)

    def counter(self, node: Node) -> CounterPlace:
        return {
            "kind": "netns",
            "node": node.name,
            "tx": {"netns": node.name, "device": "eth0"},
            "rx": {"netns": SWITCH, "device": port_of(node)},
            "delays": self.delay_line.statistics_path,
        }

    def commands(self) -> list[str]:
        wanted = self.network.congestion_control or DEFAULT_CONGESTION_CONTROL
        batches = self._build_batches()
        setting = (f"net.ipv4.tcp_congestion_control={wanted}",)
        batches += [ToolBatch(tool="sysctl", netns=node.name, lines=setting) for node in self.network.nodes]
        self._handle = 1
        batches += self._shape_batches(self.network)
        rules = self._delay_rules(self.network)
        batches += [self.delay_line.batch(rules)] if rules else []
        return [line for batch in batches for line in batch.shown()]

    def describe(self) -> NetworkFacts:
        rate, network = self.network.slowest_bps, self.network
        return {
            "backend": "netns",
            "shaped": network.shaped,
            "accounting": network.accounting,
            "framing": network.framing,
            "framing_bytes": FRAMING_BYTES[network.framing],
            "rate_bps": rate,
            "goodput_expected_bps": goodput_bps(rate, network.mtu, network.framing) if rate else None,
            "delays": self.delays_used,
            "delay_line_priority": self.delay_line.priority,
            "delay_line": self.delay_line.lines(),
            "mtu": self.network.mtu,
            "congestion_control": sorted(set(self._congestion_control.values())),
            "sysctls": [*TCP_SYSCTLS, *steering()],
            "nodes": [{"name": node.name, "address": node.address} for node in self.network.nodes],
        }
