"""One interface of a real machine (or of a container that a shaper sits beside) as a node's access link, and back.

    leaves     root qdisc of the interface: a token bucket, behind which netem delays where the kernel has it
    arrives    redirected to an intermediate device (ifb), whose root qdisc is a token bucket
    delay      without netem: what arrives waits in NFQUEUE (mangle INPUT), a relay lets it go, as long as we live

Everything of ours can be told by its name: qdiscs have the handle 7e5:, the device and the chain of rules are called
tb-…. Nothing else is touched, and an interface that carries another's qdisc is left alone unless told otherwise.
Needs NET_ADMIN in the interface's network namespace, which is the present one.
"""

import json
import subprocess
from dataclasses import replace
from typing import Any

from emulation.commands import iptables, tool_path
from emulation.errors import CapabilityError, EmulationError, LinkError, UsageError
from emulation.network import Framing, Link, star
from emulation.nodes.reading import read_devices
from emulation.shaping import tc
from emulation.shaping.delays import DelayLine, Rule
from emulation.shaping.sizes import segments_of

__all__ = ["HANDLE", "Interface"]

HANDLE = 0x7E5
_PREFIX = "tb-"
_QUEUE = 30_021
_INGRESS = "ffff:"
_HARMLESS = ("noqueue", "pfifo_fast", "fq_codel", "fq", "mq")
"""What kernels and distributions put on an interface by themselves, with handle 0."""
_KERNELS_SEGMENTS = 65_535
"""gso_max_segs unless told."""


class Interface:
    """`with Interface("eth0", link) as interface:`, or `shape` and, by another process, `undo`."""

    def __init__(self, name: str, link: Link | None = None, *, framing: Framing = "layer2") -> None:
        """`link`: what it is to be; None: only to look or to undo. UsageError where there is no such interface."""
        found = _json("ip", "-j", "link", "show", "dev", name)
        if not found or name == "lo":
            there = [each["ifname"] for each in _json("ip", "-j", "link", "show")]
            known = ", ".join(each for each in there if each != "lo" and not each.startswith(_PREFIX))
            raise UsageError(f"there is no interface '{name}' here that could be shaped; there are: {known or 'none'}.")
        self.name = name
        self.helper = f"{_PREFIX}{name}"[:15]
        """The device through which what arrives passes, and the chain of rules."""
        self.link = link or Link()
        self.network = replace(star(2, self.link, "nic"), mtu=int(found[0]["mtu"]), framing=framing)
        """This node, and whoever is at the other end."""
        self.delays: str | None = None
        """What delays: netem, delay line, or nothing."""
        self._line: DelayLine | None = None

    def __enter__(self) -> "Interface":
        self.shape(hold=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    # -- what is there

    def _qdiscs(self) -> list[dict[str, Any]]:
        return _json("tc", "-j", "qdisc", "show", "dev", self.name)

    def _has_helper(self) -> bool:
        return bool(_json("ip", "-j", "link", "show", "dev", self.helper))

    def foreign(self) -> list[str]:
        """Qdiscs that somebody has put there, and not we."""
        return [
            f"{each['kind']} {each['handle']}"
            for each in self._qdiscs()
            if each["handle"] not in ("0:", f"{HANDLE:x}:")
            and not each.get("parent", "").startswith(f"{HANDLE:x}:")
            and not (each["kind"] == "ingress" and self._has_helper())
            and not (each["kind"] in _HARMLESS and each["handle"] == "0:")
        ]

    @property
    def ours(self) -> bool:
        """Whether anything of ours is there."""
        return self._has_helper() or any(each["handle"] == f"{HANDLE:x}:" for each in self._qdiscs())

    # -- shaping

    def shape(self, *, hold: bool = False, force: bool = False) -> None:
        """Make it so, and read it back; LinkError if the kernel then has something else.

        `hold`: this process stays, and may let a relay of its own delay what arrives.
        """
        if (found := self.foreign()) and not force:
            raise UsageError(
                f"{self.name} carries {', '.join(found)}, which is not ours: take it away first, or add --force, which "
                "replaces it (--undo does not bring it back)."
            )
        self.undo()
        if force:
            for each in found:
                place = "root" if each.split()[0] not in ("ingress", "clsact") else each.split()[0]
                _run("tc", f"qdisc del dev {self.name} {place}")
        try:
            _run(
                "ip",
                f"link add {self.helper} type ifb",
                f"link set {self.helper} mtu {self.network.mtu} up",
                f"link set dev {self.name} gso_max_segs {segments_of(self.network, 0)}",
            )
            self.delays = self._choose_delays(hold=hold)
            shapers = tc.node_shapers(self.network, self.network.nodes[0], netem=self.delays == "netem")
            self._put(shapers)
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

    def _put(self, shapers: tuple[tc.Shaper, tc.Shaper]) -> None:
        leaves, arrives = shapers
        if self.delays == "delay line":
            self._line = _Arrivals(self.name, self.helper)
            self._line.apply([Rule(queue=_QUEUE, pairs=((0, 1),), link=self.link)])
        _run("tc", *arrives.lines(self.helper, HANDLE))
        _run(
            "tc",
            *leaves.lines(self.name, HANDLE),
            f"qdisc replace dev {self.name} handle {_INGRESS} ingress",
            f"filter replace dev {self.name} parent {_INGRESS} protocol all prio 1 u32 match u32 0 0 "
            f"action mirred egress redirect dev {self.helper}",
        )

    def check(self) -> dict[str, Any]:
        """What the kernel has, proven to be what was asked; LinkError otherwise."""
        shapers = tc.node_shapers(self.network, self.network.nodes[0], netem=self.delays == "netem")
        try:
            found = read_devices([self.name, self.helper])
        except OSError as error:
            raise LinkError(f"{self.name} is shaped no more: {error.strerror or error}.") from None
        others = found[self.name]["others"]
        problems = [] if "ingress" in others else [f"{self.name}: what arrives is not redirected"]
        found[self.name] = found[self.name] | {"others": [kind for kind in others if kind != "ingress"]}
        for device, shaper in zip((self.name, self.helper), shapers, strict=True):
            problems += tc.differences(shaper.expected(), found[device], device)
        if self._line is not None:
            self._line.check()
            problems += [] if self._line.read_rules() == self._line.lines() else ["the delay line's rules are others"]
        if problems:
            raise LinkError(f"{self.name} was to be shaped, but " + "; ".join(problems[:4]) + ".")
        return found

    def undo(self) -> bool:
        """Take away what is ours; whether anything was."""
        if self._line is not None:
            self._line.close()
            self._line = None
        _remove_chain(self.name, self.helper)
        if not self.ours:
            return False
        kinds = [(each["kind"], each["handle"]) for each in self._qdiscs()]
        if any(handle == f"{HANDLE:x}:" for _, handle in kinds):
            _run("tc", f"qdisc del dev {self.name} root")
        if self._has_helper():
            if any(kind == "ingress" for kind, _ in kinds):
                _run("tc", f"qdisc del dev {self.name} ingress")
            _run("ip", f"link del {self.helper}")
        _run("ip", f"link set dev {self.name} gso_max_segs {_KERNELS_SEGMENTS}")
        return True


class _Arrivals(DelayLine):
    """A delay line for what arrives at one interface, in a chain of its own beside whatever rules there are."""

    def __init__(self, device: str, chain: str) -> None:
        super().__init__(None, 2)
        self.device, self.chain = device, chain

    def apply(self, rules: list[Rule]) -> None:
        """The relay first, so that nothing waits for nobody."""
        self.start()
        self._tell({"lines": [rule.settings() for rule in rules]})
        self.rules = rules
        _remove_chain(self.device, self.chain)
        for words in _chain_lines(self.device, self.chain):
            iptables(None, "", "-w", "-t", "mangle", *words.split())

    def lines(self) -> list[str]:
        return _chain_lines(self.device, self.chain)

    def read_rules(self) -> list[str]:
        said = iptables(None, "", "-w", "-t", "mangle", "-S")
        return [line.strip() for line in said.splitlines() if self.chain in line.split()]


def _chain_lines(device: str, chain: str) -> list[str]:
    """As iptables takes them, and as it prints them."""
    return [f"-N {chain}", f"-A INPUT -i {device} -j {chain}", f"-A {chain} -j NFQUEUE --queue-num {_QUEUE}"]


def _remove_chain(device: str, chain: str) -> None:
    """Whatever of it is there."""
    try:
        said = iptables(None, "", "-w", "-t", "mangle", "-S")
    except CapabilityError:
        return  # where there are no tables there is no chain
    if f"-N {chain}" not in said:
        return
    if f"-A INPUT -i {device} -j {chain}" in said:
        iptables(None, "", "-w", "-t", "mangle", "-D", "INPUT", "-i", device, "-j", chain)
    for word in ("-F", "-X"):
        iptables(None, "", "-w", "-t", "mangle", word, chain)


def _json(tool: str, *words: str) -> list[dict[str, Any]]:
    """What a tool prints as JSON; nothing where it says that there is no such thing."""
    done = subprocess.run([tool_path(tool) or tool, *words], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else []


def _run(tool: str, *lines: str) -> None:
    argv = [tool_path(tool) or tool, "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    if done.returncode or done.stderr.strip():
        said = " / ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        if "not permitted" in said:
            raise CapabilityError(f"shaping an interface takes NET_ADMIN ('{tool} {lines[0]}': {said}): use sudo.")
        raise EmulationError(f"'{tool} {lines[0]}' and what follows it failed: {said or done.returncode}")
