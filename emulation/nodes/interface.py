"""One interface of a real machine (or of a container that a shaper sits beside) as a node's access link, and back.

    leaves     root qdisc of the interface: a token bucket, behind which netem delays where the kernel has it
    arrives    redirected to an intermediate device (ifb), whose root qdisc is a token bucket
    delay      without netem: what arrives waits in NFQUEUE (mangle INPUT), a relay lets it go, as long as we live; when
               the relay is gone the kernel lets all pass, for a real machine must not lose its network

Everything of ours can be told by its name: the root qdisc has the handle 7e5:, the device and the chain of rules are
called tb-<the interface's number>. Nothing else is touched, and an interface that carries another's qdisc is left alone
unless told otherwise. Needs NET_ADMIN in the interface's network namespace, which is the present one.
"""

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from emulation.errors import CapabilityError, LinkError, UsageError
from emulation.kernel.commands import ToolBatch, iptables, tool_path
from emulation.kernel.facts import ShaperFacts, ToolRow
from emulation.nodes.readback import read_devices
from emulation.shaping import tc
from emulation.shaping.delays import DelayLine
from emulation.shaping.rules import RelayRate, Rule
from emulation.shaping.sizes import segments_of
from emulation.spec.network import Framing, Link, star

__all__ = ["HANDLE", "Interface"]

HANDLE = 0x7E5
_PREFIX = "tb-"
_FIRST_QUEUE, _QUEUES = 30_000, 30_000
_INGRESS = "ffff:"
_LARGEST_MTU = 9000
"""That sizes are reckoned for; a cloud's 9001 is the same."""


class Interface:
    """`with Interface("eth0", link) as interface:`, or `shape` and, by another process, `undo`."""

    def __init__(self, name: str, link: Link | None = None, *, framing: Framing = "layer2") -> None:
        """`link`: what it is to be; None: only to look or to undo. UsageError where there is no such interface."""
        found = _json("ip", "-j", "link", "show", "dev", name)
        if not found or name == "lo":
            there = [each["ifname"] for each in _json("ip", "-j", "link", "show")]
            known = ", ".join(each for each in there if each != "lo" and not each.startswith(_PREFIX))
            raise UsageError(f"there is no interface '{name}' here that could be shaped; there are: {known or 'none'}.")
        self.name = found[0]["ifname"]
        """The kernel's own, also where another of its names was given."""
        self.helper = f"{_PREFIX}{found[0]['ifindex']}"
        """The device through which what arrives passes, and the chain of rules."""
        self.queue = _FIRST_QUEUE + found[0]["ifindex"] % _QUEUES
        self.link = link or Link()
        mtu = max(576, min(_LARGEST_MTU, int(found[0]["mtu"])))
        self.network = replace(star(2, self.link, "nic"), mtu=mtu, framing=framing)
        """This node, and whoever is at the other end."""
        self.delays: str | None = None
        """What delays: netem, delay line, or nothing."""
        self._line: DelayLine | None = None
        self._segments = 0

    def __enter__(self) -> "Interface":
        self.shape(hold=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    # -- what is there

    def _qdiscs(self) -> list[ToolRow]:
        return _json("tc", "-j", "qdisc", "show", "dev", self.name)

    def _helper(self) -> ToolRow | None:
        found = _json("ip", "-j", "link", "show", "dev", self.helper)
        return found[0] if found else None

    def foreign(self) -> list[str]:
        """Qdiscs that somebody has put there: neither we nor the kernel, whose own have no handle."""
        return [
            f"{each['kind']} {each['handle']}"
            for each in self._qdiscs()
            if each["handle"] not in ("0:", f"{HANDLE:x}:")
            and not each.get("parent", "").startswith(f"{HANDLE:x}:")
            and not (each["kind"] == "ingress" and self.ours)
        ]

    @property
    def ours(self) -> bool:
        """Whether anything of ours is there."""
        return self._helper() is not None or any(each["handle"] == f"{HANDLE:x}:" for each in self._qdiscs())

    # -- shaping

    def shape(self, *, hold: bool = False, force: bool = False) -> None:
        """Make it so, and read it back; LinkError if the kernel then has something else.

        `hold`: this process stays, and may let a relay of its own delay what arrives. `force`: replace what others have
        put there.
        """
        if self.ours:
            raise UsageError(f"{self.name} carries a link of ours already: 'testbed shape {self.name} --undo' first.")
        if (found := self.foreign()) and not force:
            raise UsageError(
                f"{self.name} carries {', '.join(found)}, which is not ours: take it away first, or add --force, which "
                "replaces it (--undo does not bring it back)."
            )
        for kind in sorted({each.split()[0] for each in found} & {"ingress", "clsact"}):
            _run("tc", f"qdisc del dev {self.name} {kind}")
        try:
            before = _json("ip", "-j", "-d", "link", "show", "dev", self.name)[0].get("gso_max_segs", 0)
            self._segments = min(before, segments_of(self.network, 0)) if before else 0
            _run(
                "ip",
                f"link add {self.helper} type ifb",
                f"link set {self.helper} mtu {self.network.mtu} alias {before} up",
                *([f"link set dev {self.name} gso_max_segs {self._segments}"] if before else []),
            )
            self.delays = self._choose_delays(hold=hold)
            self._put()
            self.check()
        except BaseException:
            self.undo()
            raise

    def _choose_delays(self, *, hold: bool) -> str | None:
        if not self.link.impaired:
            return None
        tried = [tool_path("tc") or "tc", "qdisc", "add", "dev", self.helper, "root", "netem", "delay", "1ms"]
        if subprocess.run(tried, capture_output=True, check=False).returncode == 0:
            return "netem"
        if not hold:
            raise CapabilityError(
                "this kernel has no netem, so packets are delayed by a process of ours: add --hold, which keeps it "
                "and the link until you end it, or leave delay and loss out."
            )
        return "delay line"

    def _shapers(self) -> tuple[tc.Shaper, tc.Shaper]:
        return tc.node_shapers(self.network, self.network.nodes[0], netem=self.delays == "netem")

    def _put(self) -> None:
        leaves, arrives = self._shapers()
        if self.delays == "delay line":
            self._line = _Arrivals(self.name, self.helper, self.queue)
            self._line.apply([Rule(queue=self.queue, pairs=((0, 1),), link=self.link)])
        _run("tc", *arrives.lines(self.helper, HANDLE))
        _run(
            "tc",
            *leaves.lines(self.name, HANDLE),
            f"qdisc replace dev {self.name} handle {_INGRESS} ingress",
            f"filter replace dev {self.name} parent {_INGRESS} protocol all prio 1 u32 match u32 0 0 "
            f"action mirred egress redirect dev {self.helper}",
        )

    def check(self) -> dict[str, ShaperFacts]:
        """What the kernel has, proven to be what was asked; LinkError otherwise."""
        try:
            found = read_devices([self.name, self.helper])
        except OSError as error:
            raise LinkError(f"{self.name} is shaped no more: {error.strerror or error}.") from None
        filters = _json("tc", "-j", "filter", "show", "dev", self.name, "parent", _INGRESS)
        redirects = [act.get("to_dev") for each in filters for act in each.get("options", {}).get("actions", [])]
        problems = [] if redirects == [self.helper] else [f"what arrives is redirected to {redirects or 'nothing'}"]
        others = [kind for kind in found[self.name]["others"] if kind != "ingress"]
        found[self.name]["others"] = others
        for device, shaper in zip((self.name, self.helper), self._shapers(), strict=True):
            expected = shaper.expected()
            if device == self.name and self._segments:
                expected["gso_max_segs"] = self._segments
            problems += tc.differences(expected, found[device], device)
        if self._line is not None:
            self._line.check()
            problems += [] if self._line.read_rules() == self._line.lines() else ["the delay line's rules are others"]
        if problems:
            raise LinkError(f"{self.name} was to be shaped, but " + "; ".join(problems[:4]) + ".")
        return found

    def undo(self) -> bool:
        """Take away what is ours; whether anything was."""
        there = _remove_chain(self.name, self.helper)  # first, so that nothing waits for nobody
        if self._line is not None:
            self._line.close()
            self._line = None
        if not self.ours:
            return there
        kinds = [(each["kind"], each["handle"]) for each in self._qdiscs()]
        if any(handle == f"{HANDLE:x}:" for _, handle in kinds):
            _run("tc", f"qdisc del dev {self.name} root")
        if any(kind == "ingress" for kind, _ in kinds):
            _run("tc", f"qdisc del dev {self.name} ingress")
        if (helper := self._helper()) is not None:
            if int(helper.get("ifalias") or 0):
                _run("ip", f"link set dev {self.name} gso_max_segs {helper['ifalias']}")
            _run("ip", f"link del {self.helper}")
        return True


class _Arrivals(DelayLine):
    """A delay line for what arrives at one interface, in a chain of its own beside whatever rules there are."""

    def __init__(self, device: str, chain: str, queue: int) -> None:
        super().__init__(None, 2)
        self.device, self.chain, self.queue = device, chain, queue

    def apply(self, rules: list[Rule], rates: Sequence[RelayRate] = (), at_ns: int | None = None) -> None:
        """The relay first, so that nothing waits for nobody."""
        assert not rates, "a rate of a real interface is the kernel's"
        assert at_ns is None, "so are its times"
        self.start()
        self._tell({"lines": [rule.settings() for rule in rules]})
        self.rules = rules
        _remove_chain(self.device, self.chain)
        for words in self._kernel_lines(rules):
            iptables(None, "", "-w", "-t", "mangle", *words.split())

    def _kernel_lines(self, rules: list[Rule]) -> list[str]:
        del rules  # there is one
        queue = f"-A {self.chain} -j NFQUEUE --queue-num {self.queue} --queue-bypass"
        return [f"-N {self.chain}", f"-A INPUT -i {self.device} -j {self.chain}", queue]

    def _read_kernel(self) -> list[str]:
        return [line for line in _rules() if self.chain in line.split()]


def _rules() -> list[str]:
    return [line.strip() for line in iptables(None, "", "-w", "-t", "mangle", "-S").splitlines()]


def _remove_chain(device: str, chain: str) -> bool:
    """Whatever of it is there; whether anything was."""
    there: list[str] = []
    with suppress(CapabilityError):  # where there are no tables there is no chain
        there = _rules()
    if f"-N {chain}" not in there:
        return False
    if f"-A INPUT -i {device} -j {chain}" in there:
        iptables(None, "", "-w", "-t", "mangle", "-D", "INPUT", "-i", device, "-j", chain)
    for word in ("-F", "-X"):
        iptables(None, "", "-w", "-t", "mangle", word, chain)
    return True


def _json(tool: str, *words: str) -> list[ToolRow]:
    """What a tool prints as JSON; nothing where it says that there is no such thing."""
    done = subprocess.run([tool_path(tool) or tool, *words], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else []


def _run(tool: Any, *lines: str) -> None:
    """In the present namespace; CapabilityError that says what it takes."""
    try:
        ToolBatch(tool=tool, netns=None, lines=lines).run()
    except CapabilityError as error:
        raise CapabilityError(f"{error} Shaping an interface takes root (NET_ADMIN).") from None
