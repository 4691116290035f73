"""Containers that are shaped without root: beside each node stands a shaper, and one is the switch.

    container n0 ─ shaper of n0 (shares its network) ── eth0 ──veth── sw0 ┐
    container n1 ─ shaper of n1 (shares its network) ── eth0 ──veth── sw1 ┤ routes (container "switch")
    container n2 ─ shaper of n2 (shares its network) ── eth0 ──veth── sw2 ┘

Whoever may use the engine may have this; the driver itself enters no namespace. Shapers and the switch alone hold
NET_ADMIN, run nothing but our helper (`emulation.nodes.helper`) and the delay line, and do with the same commands what
root does elsewhere (`emulation.nodes.docker`). Each node's shaper hands its network namespace to the switch, which puts
the other end of a cable of its own into it: no network of the engine's is there, and so no other way to a peer. What
the kernel keeps below /proc/sys the engine sets as it starts them, for containers cannot write there.
"""

import os
import subprocess
from collections.abc import Callable
from typing import Any

from emulation.kernel.counters import open_end
from emulation.kernel.facts import NetworkFacts
from emulation.kernel.netlink import TcSocket
from emulation.nodes.docker import DockerBackend
from emulation.nodes.engine import require_image, shaper_image, shaper_of
from emulation.nodes.helper import hand_over_end, hand_over_namespace, name_namespace
from emulation.nodes.readback import SWITCH
from emulation.shaping.delays import DelayLine

__all__ = ["SidecarBackend"]

_MAY: dict[str, Any] = {
    "user": "0:0",
    "cap_add": ["NET_ADMIN"],
    "tmpfs": {"/tmp": "mode=1777", "/run": "mode=755"},
}


_SWITCH_SHARES = 29154
"""Of processor time, as a process of nice -15 has of others' 1024 (sched_prio_to_weight): a delay line that is late is
none, and within its own container a process can hurry only itself."""


class SidecarBackend(DockerBackend):
    """As `DockerBackend`, in any world, by any user of the engine."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._given |= {SWITCH}
        self._switch: Any = None
        self.delay_line = DelayLine(SWITCH, len(self.network.nodes), at=self.at, spawn=self._relay)
        self._shaper_id: str | None = None

    # -- life

    def _start_all(self) -> None:
        shaper = shaper_image(self.image)
        self._shaper_id = require_image(self._client, shaper).id
        assert self._room is not None
        assert self.delay_line.statistics_path is not None
        os.chmod(self._room, 0o711)  # a shaper's root has no right to what is ours
        os.chmod(self.delay_line.statistics_path, 0o666)  # its name cannot be guessed
        set_by_engine = self._sysctls()
        for node in self.network.nodes:
            self._start_node(node, sysctls=set_by_engine[node.name])
        for node, container in zip(self.network.nodes, list(self._containers), strict=True):
            self._start(shaper_of(node.name), shaper, network_mode=f"container:{container.id}", **_MAY)
        self._switch = self._start(
            SWITCH,
            shaper,
            sysctls=set_by_engine[SWITCH],
            volumes={self._room: {"bind": self._room, "mode": "rw"}},
            cpu_shares=_SWITCH_SHARES,
            **_MAY,
        )
        nodes = [node.name for node in self.network.nodes]
        self._meet([*nodes, *map(shaper_of, nodes), SWITCH])
        for name in (*nodes, SWITCH):
            helper = self._helpers[shaper_of(name)]
            _, (descriptor,) = helper.ask(hand_over_namespace)
            for each in {helper, self._helpers[SWITCH]}:
                each.ask(name_namespace, name, descriptors=[descriptor])
            os.close(descriptor)

    def _sysctls(self) -> dict[str, dict[str, str]]:
        """By namespace, what the engine is to set."""
        found: dict[str, dict[str, str]] = {name: {} for name in (SWITCH, *(node.name for node in self.network.nodes))}
        for batch in self._build_batches():
            if batch.tool == "sysctl" and batch.netns is not None:
                pairs = (line.partition("=") for line in batch.lines)
                found[batch.netns] |= {key: value.strip('"') for key, _, value in pairs}
        return found

    def _delete(self) -> None:
        """Namespaces go with their containers."""

    # -- using

    @property
    def namespaces(self) -> list[str]:
        return []  # the shapers are, in containers

    def at(self, netns: str | None, task: Callable[..., Any], *arguments: Any) -> Any:
        """Asked of the shaper that is there."""
        assert netns is not None, "nothing is done in the driver's own namespace, which is the machine's"
        helper = self._helpers[shaper_of(netns)]
        if task is not open_end:
            return helper.ask(task, *arguments)
        index, (descriptor,) = helper.ask(hand_over_end, *arguments)
        return TcSocket(descriptor), index

    def _relay(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        """Python with these arguments, in the switch."""
        command = [*self._exec(self._switch), "python", *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def commands(self) -> list[str]:
        image, nodes = shaper_image(self.image), len(self.network.nodes)
        beside = (
            f"# beside each one of {image} that shares its network, and one that is the switch, with NET_ADMIN; in "
            "these, sysctls by the engine:"
        )
        lines = super().commands()
        return [*lines[:nodes], beside, *lines[nodes:]]

    def describe(self) -> NetworkFacts:
        about: NetworkFacts = {**super().describe(), "shaped_by": "sidecars", "shaper_image_id": self._shaper_id}
        if self.delay_line.priority is not None:
            about["delay_line_priority"] = f"{_SWITCH_SHARES} CPU shares beside nodes' 1024"
        return about
