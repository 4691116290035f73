"""One interface of a real machine (or of a container that a shaper sits beside) as a node's access link, and back.

    leaves     root qdisc of the interface: a token bucket, behind which netem delays where the kernel has it
    arrives    redirected to an intermediate device (ifb), whose root qdisc is a token bucket
    delay      without netem: what arrives waits in NFQUEUE (mangle INPUT), a relay lets it go

Everything of ours can be told by its name: qdiscs have the handle 7e5:, the device is called tb-…, the rule carries a
comment. Nothing else is touched, and an interface that carries another's qdisc is left alone unless told otherwise.
Needs NET_ADMIN in the namespace of the interface.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from emulation.commands import tool_path
from emulation.errors import CapabilityError, LinkError, UsageError
from emulation.network import Link, Network, star
from emulation.nodes.reading import read_devices
from emulation.shaping import tc

__all__ = ["HANDLE", "Interface", "Shaped"]

HANDLE = 0x7E5
_COMMENT = "slowlink-testbed"
_QUEUE = 30_021
_INGRESS = "ffff:"
_HARMLESS = ("noqueue", "pfifo_fast", "fq_codel", "fq", "mq")
"""What kernels and distributions put on an interface by themselves, with handle 0."""


@dataclass(frozen=True, kw_only=True)
class Shaped:
    """What is in place."""

    link: Link
    mtu: int
    delays: str | None
    """netem, delay line, or nothing."""


class Interface:
    """`Interface("eth0")`; every method runs tc(8) and ip(8) in the present network namespace."""

    def __init__(self, name: str) -> None:
        found = _json(["ip", "-j", "link", "show", "dev", name])
        if not found:
            known = ", ".join(each["ifname"] for each in _json(["ip", "-j", "link", "show"]))
            raise UsageError(f"there is no interface {name!r} here; there are {known}.")
        self.name = name
        self.mtu = int(found[0]["mtu"])
        self.helper = f"tb-{name}"[:15]
        """The device through which what arrives passes."""

    # -- what is there

    def qdiscs(self) -> list[dict[str, Any]]:
        return _json(["tc", "-j", "qdisc", "show", "dev", self.name])

    def foreign(self) -> list[str]:
        """Qdiscs that somebody has put there, and not we."""
        return [
            f"{each['kind']} {each['handle']}"
            for each in self.qdiscs()
            if each["handle"] not in ("0:", f"{HANDLE:x}:")
            and each["kind"] not in _HARMLESS
            and not (each["kind"] == "ingress" and self._has_helper())
            and not each.get("parent", "").startswith(f"{HANDLE:x}:")
        ]

    def _has_helper(self) -> bool:
        return bool(_json(["ip", "-j", "link", "show", "dev", self.helper]))

    def ours(self) -> bool:
        """Whether anything of ours is there."""
        return self._has_helper() or any(each["handle"] == f"{HANDLE:x}:" for each in self.qdiscs())

    # -- shaping

    def shape(self, link: Link, *, framing: Any = "layer2", netem: bool, force: bool = False) -> Shaped:
        """Make it so; `netem`: whether the kernel delays. LinkError if the kernel then has something else."""
        if (found := self.foreign()) and not force:
            raise UsageError(
                f"{self.name} carries {', '.join(found)}, which is not ours: take it away first, or add --force, which "
                "replaces it (undo does not bring it back)."
            )
        shapers = self._shapers(link, framing, netem)
        self.undo()
        try:
            self._put(shapers)
            self._check(shapers)
        except BaseException:
            self.undo()
            raise
        return Shaped(link=link, mtu=self.mtu, delays=("netem" if netem else "delay line") if link.impaired else None)

    def _network(self, link: Link, framing: Any) -> Network:
        """Two nodes: this one, and whoever is at the other end."""
        return replace(star(2, link, "nic"), mtu=self.mtu, framing=framing)

    def _shapers(self, link: Link, framing: Any, netem: bool) -> tuple[tc.Shaper, tc.Shaper]:
        network = self._network(link, framing)
        return tc.node_shapers(network, network.nodes[0], netem=netem)

    def _put(self, shapers: tuple[tc.Shaper, tc.Shaper]) -> None:
        leaves, arrives = shapers
        _batch("ip", [f"link add {self.helper} type ifb", f"link set {self.helper} mtu {self.mtu} up"])
        _batch("tc", arrives.lines(self.helper, HANDLE))
        _batch(
            "tc",
            [
                *leaves.lines(self.name, HANDLE),
                f"qdisc replace dev {self.name} handle {_INGRESS} ingress",
                f"filter replace dev {self.name} parent {_INGRESS} protocol all prio 1 u32 match u32 0 0 "
                f"action mirred egress redirect dev {self.helper}",
            ],
        )

    def _check(self, shapers: tuple[tc.Shaper, tc.Shaper]) -> None:
        found = read_devices([self.name, self.helper])
        problems = []
        for device, shaper in zip((self.name, self.helper), shapers, strict=True):
            have = found[device] | {"others": [kind for kind in found[device]["others"] if kind != "ingress"]}
            problems += tc.differences(shaper.expected(), have, device)
        if problems:
            raise LinkError(f"{self.name} was to be shaped, but " + "; ".join(problems[:4]) + ".")

    def undo(self) -> bool:
        """Take away what is ours; whether anything was."""
        if not self.ours():
            return False
        if any(each["handle"] == f"{HANDLE:x}:" for each in self.qdiscs()):
            _batch("tc", [f"qdisc del dev {self.name} root"])
        if self._has_helper():
            if any(each["kind"] == "ingress" for each in self.qdiscs()):
                _batch("tc", [f"qdisc del dev {self.name} ingress"])
            _batch("ip", [f"link del {self.helper}"])
        return True


def _json(words: Sequence[str]) -> list[dict[str, Any]]:
    """What a tool prints as JSON; nothing where it says that there is no such thing."""
    done = subprocess.run(
        [tool_path(words[0]) or words[0], *words[1:]], capture_output=True, text=True, check=False, env={**os.environ}
    )
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else []


def _batch(tool: str, lines: Sequence[str]) -> None:
    text = "\n".join(lines) + "\n"
    argv = [tool_path(tool) or tool, "-batch", "-"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode or done.stderr.strip():
        said = " / ".join(done.stderr.split("\n")).strip(" /") or f"exit status {done.returncode}"
        raise CapabilityError(f"'{tool} {lines[0]}' and what follows: {said}; it takes NET_ADMIN, and sch_tbf and ifb.")
