"""Nodes in containers, around the same switch: only the places where programs run are the engine's.

    container n0: eth0 ──veth── sw0 ┐
    container n1: eth0 ──veth── sw1 ┤ routes (namespace "switch")
    container n2: eth0 ──veth── sw2 ┘

A container has no network of the engine's (`--network none`), no capability, and a root file system that it cannot
write. Its link is put into its namespace from outside, and is shaped, delayed, read back, cut and counted by the very
code that does so for namespaces (`emulation.nodes.netns`): here by root on the engine's machine, who may enter any; by
shapers beside the nodes in `emulation.nodes.sidecars`. To be built inside `run_in_world(…, beside_engine=True)`.

A container ends when its helper's connection does (`emulation.nodes.helper`), which is this process's: whatever kills
the driver, none is left. The switch, the delay line and all links belong to the world and go with it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from emulation.errors import CapabilityError, EmulationError, LinkError
from emulation.kernel.counters import CounterServer
from emulation.kernel.facts import CounterPlace, NetworkFacts
from emulation.kernel.process_tag import VARIABLE, mark, sees
from emulation.kernel.syscalls import MS_BIND, mount, netns_path
from emulation.nodes.engine import (
    IMAGE,
    OWNER,
    RIGHTS,
    RUN,
    SEEN_BY,
    container_name,
    engine,
    engine_address,
    engine_errors,
    make_room,
    orphaned,
    remove,
    require_image,
    require_names,
)
from emulation.nodes.helper import programs, signal_programs
from emulation.nodes.netns import NetnsBackend
from emulation.nodes.rpc import Channel, Door
from emulation.spec.network import Network, Node

__all__ = ["DockerBackend"]

_HOSTS_OWN = (
    *("PATH", "HOME", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD"),
    *("DOCKER_HOST", "DOCKER_CONTEXT"),
)
"""What of an environment means nothing in a container."""
_SHARE_OF_MEMORY = 0.9
_SEEN_SECONDS = 20.0
_MOST_PROCESSES = 512
_HELPER = ("python", "-P", "-m", "emulation.nodes.helper")


class DockerBackend(NetnsBackend):
    """A network of containers. `with DockerBackend(network, run="first") as backend:`."""

    def __init__(
        self,
        network: Network,
        *,
        run: str,
        image: str = IMAGE,
        folders: Mapping[Path, Literal["ro", "rw"]] | None = None,
        elsewhere: Mapping[Path, tuple[str, str]] | None = None,
        delays: Literal["netem", "delay line"] | None = None,
    ) -> None:
        super().__init__(network, delays=delays)
        self.run, self.image = run, image
        self.folders = folders or {}
        """Of this machine, that containers see at the same place."""
        self.elsewhere = elsewhere or {}
        """Of this machine, that they may read at another place, which stands in a variable: (place, variable)."""
        self._given = frozenset(node.name for node in network.nodes)
        self._client: Any = None
        self._containers: list[Any] = []
        self._door: Door | None = None
        self._helpers: dict[str, Channel] = {}
        """By name: of nodes, and whatever else there is."""
        self._image_id: str | None = None
        self._room: str | None = None
        self._counters: CounterServer | None = None

    # -- life

    def open(self) -> None:
        try:
            super().open()
            ends = [super(DockerBackend, self).counter(node) for node in self.network.nodes]
            self._counters = CounterServer(f"{self._room}/counters", ends, self.at)
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        self._client = engine()
        remove(orphaned(self._client))
        require_names(self._client, self.run, self.network.nodes)
        self._image_id = require_image(self._client, self.image).id
        self._room = make_room(mark()[VARIABLE])
        self._door = Door(f"{self._room}/door")
        self.delay_line.prepare(self._room)
        self._start_all()

    def _name_nodes(self) -> None:
        """The engine does, when it makes the containers."""

    def _start_all(self) -> None:
        """All containers, the channels to their helpers, and the way into their networks."""
        for node in self.network.nodes:
            self._start_node(node)
        self._meet(node.name for node in self.network.nodes)
        for node, container in zip(self.network.nodes, self._containers, strict=True):
            self._enter(node, container)

    def _start_node(self, node: Node, **options: Any) -> Any:
        seen = {str(folder): {"bind": str(folder), "mode": mode} for folder, mode in self.folders.items()}
        seen |= {str(folder): {"bind": place, "mode": "ro"} for folder, (place, _) in self.elsewhere.items()}
        return self._start(
            node.name,
            self.image,
            hostname=node.name,
            extra_hosts={each.name: each.address for each in self.network.nodes},
            user=f"{os.getuid()}:{os.getgid()}",
            environment={variable: place for place, variable in self.elsewhere.values()},
            volumes=seen,
            working_dir=os.getcwd(),
            **options,
        )

    def _start(
        self,
        name: str,
        image: str,
        *,
        environment: Mapping[str, str] = MappingProxyType({}),
        volumes: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> Any:
        """One container, in which a helper runs by whose name it is known."""
        share = int(_SHARE_OF_MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        owner, called = mark()[VARIABLE], container_name(self.run, name)
        assert self._door is not None
        try:
            container = self._client.containers.create(
                image,
                [*_HELPER, self._door.path, name],
                name=called,
                labels={RUN: self.run, OWNER: owner, SEEN_BY: sees()},
                entrypoint=[],
                auto_remove=True,
                init=True,
                environment={VARIABLE: owner, "HOME": "/tmp", **environment},
                volumes={self._room: {"bind": self._room, "mode": "ro"}, **volumes},
                mem_limit=share,
                nano_cpus=len(os.sched_getaffinity(0)) * 10**9,
                pids_limit=_MOST_PROCESSES,
                **(RIGHTS | options),
            )
            self._containers.append(container)
            container.start()
        except engine_errors() as error:
            why = getattr(error, "explanation", None) or error
            raise EmulationError(f"the engine did not start {called}: {why}") from None
        return container

    def _meet(self, names: Iterable[str]) -> None:
        assert self._door is not None
        self._helpers |= self._door.meet(names, self._check_started)
        self._door.close()
        self._door = None

    def _check_started(self) -> None:
        """Raise CapabilityError if a container has ended."""
        import docker.errors

        for container in self._containers:
            try:
                container.reload()
            except docker.errors.NotFound:
                raise CapabilityError(
                    f"{container.name} ended at once: its image cannot run this testbed (build it with 'make image'), "
                    "or the engine keeps it where this process is not (a virtual machine, another container)."
                ) from None
            except engine_errors() as error:
                raise EmulationError(f"the engine does not answer: {error}.") from None

    def _enter(self, node: Node, container: Any) -> None:
        """Give its network namespace the name by which all else finds it."""
        self._check_started()
        pid = container.attrs["State"]["Pid"]
        if f"{VARIABLE}={mark()[VARIABLE]}".encode() not in _environment_of(pid):
            raise CapabilityError(
                f"the process of {container.name} is not on this machine: the engine is elsewhere, or keeps its "
                "containers in a virtual machine. Run it there, or use docker compose (docs/docker.md)."
            )
        place = Path(netns_path(node.name))
        place.touch()
        mount(f"/proc/{pid}/ns/net", str(place), None, MS_BIND)

    def close(self) -> None:
        """Remove the containers, and with them what runs in them; a second time does nothing. Where the engine is gone,
        containers end with their helpers."""
        if self._counters is not None:
            self._counters.close()
            self._counters = None
        super().close()
        if self._door is not None:
            self._door.close()
            self._door = None
        for container in reversed(self._containers):
            with suppress(*engine_errors()):  # it has ended, and is gone
                container.remove(force=True)
        for channel in self._helpers.values():
            channel.close()
        self._helpers, self._containers = {}, []
        if self._room is not None:
            shutil.rmtree(self._room, ignore_errors=True)
            self._room = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def check_alive(self) -> None:
        super().check_alive()
        for name, channel in self._helpers.items():
            if not channel.alive():
                raise LinkError(f"the container of {name} has ended; nothing measured after that counts; run again.")

    # -- using

    starts_programs = False

    @property
    def shell(self) -> str:
        return "sh"

    @property
    def python(self) -> str:
        return "python"

    def popen(
        self, node: Node, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **popen_kwargs: Any
    ) -> subprocess.Popen[Any]:
        """The process here is the engine's client, whose pipes and status are the program's. As in a namespace, the
        program is on its node when this returns, so that a signal finds it."""
        before = set(self._helpers[node.name].ask(programs))
        given = {key: value for key, value in (env or {}).items() if key not in _HOSTS_OWN}
        terminal = popen_kwargs.get("stdin")
        tty = ["--tty"] if isinstance(terminal, int) and terminal >= 0 and os.isatty(terminal) else []
        named = [f"--env={key}" for key in given]  # values stay out of the command line
        command = [*self._exec(self._containers[node.index], *tty, *named), *argv]
        process = subprocess.Popen(command, env={**os.environ, **given}, **popen_kwargs)
        deadline = time.monotonic() + _SEEN_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if set(self._helpers[node.name].ask(programs)) - before:
                break
            time.sleep(0.005)
        return process

    def _exec(self, container: Any, *options: str) -> list[str]:
        """The engine's client, to run what follows in a container."""
        return ["docker", "--host", engine_address(), "exec", "--interactive", *options, container.id]

    def signal(self, node: Node, number: int) -> None:
        self._helpers[node.name].ask(signal_programs, number)

    def counter(self, node: Node) -> CounterPlace:
        return {
            "kind": "passed",
            "node": node.name,
            "index": node.index,
            "socket": f"{self._room}/counters",
            "delays": self.delay_line.statistics_path,
        }

    def commands(self) -> list[str]:
        made = [
            f"# by the engine's API: container {container_name(self.run, node.name)} of {self.image}, without network, "
            "capabilities, or a root it could write"
            for node in self.network.nodes
        ]
        return [*made, *super().commands()]

    def describe(self) -> NetworkFacts:
        return {
            **super().describe(),
            "backend": "docker",
            "shaped_by": "root",
            "image": self.image,
            "image_id": self._image_id,
        }


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
