"""Nodes in containers, around the same switch: only the places where programs run are the engine's.

    container n0: eth0 ──veth── sw0 ┐
    container n1: eth0 ──veth── sw1 ┤ routes (namespace "switch", this world's)
    container n2: eth0 ──veth── sw2 ┘

A container has no network of the engine's (`--network none`), no capability, and a root file system that it cannot
write. Its link is put into its namespace from outside, by root on the engine's machine, and is shaped, delayed, read
back, cut and counted by the very code that does so for namespaces (`emulation.nodes.netns`). To be built inside
`run_in_world(…, beside_engine=True)`.

A container ends when its standard input does, which is this process's: whatever kills the driver, none is left. The
switch, the delay line and all links belong to the world and go with it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from emulation.counters import CounterServer
from emulation.errors import CapabilityError, EmulationError, LinkError
from emulation.mark import VARIABLE, mark, sees
from emulation.network import Network, Node
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
from emulation.nodes.netns import NetnsBackend, processes_in
from emulation.syscalls import MS_BIND, mount, netns_path

__all__ = ["DockerBackend"]

_KEEPER = "import sys; sys.stdin.buffer.read()"
_HOSTS_OWN = (
    *("PATH", "HOME", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD"),
    *("DOCKER_HOST", "DOCKER_CONTEXT"),
)
"""What of an environment means nothing in a container."""
_SHARE_OF_MEMORY = 0.9
_START_SECONDS = 20.0
_MOST_PROCESSES = 512
_KEEPERS = 2
"""The engine's init and the program that waits for the end of standard input."""


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
        self._inputs: list[Any] = []
        """Standard inputs of the containers: they live as long as these are open."""
        self._keepers: set[int] = set()
        self._image_id: str | None = None
        self._room: str | None = None
        self._counters: CounterServer | None = None

    # -- life

    def open(self) -> None:
        try:
            super().open()
            ends = [super(DockerBackend, self).counter(node) for node in self.network.nodes]
            self._counters = CounterServer(f"{self._room}/counters", ends)
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        self._client = engine()
        remove(orphaned(self._client))
        require_names(self._client, self.run, self.network.nodes)
        self._image_id = require_image(self._client, self.image).id
        self._room = make_room(mark()[VARIABLE])
        self.delay_line.prepare(self._room)
        for node in self.network.nodes:
            self._start(node)
        for node, container in zip(self.network.nodes, self._containers, strict=True):
            self._enter(node, container)

    def _start(self, node: Node) -> None:
        share = int(_SHARE_OF_MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        owner = mark()[VARIABLE]
        seen = {str(folder): {"bind": str(folder), "mode": mode} for folder, mode in self.folders.items()}
        seen |= {str(folder): {"bind": place, "mode": "ro"} for folder, (place, _) in self.elsewhere.items()}
        try:
            container = self._client.containers.create(
                self.image,
                ["python", "-c", _KEEPER],
                name=container_name(self.run, node),
                hostname=node.name,
                labels={RUN: self.run, OWNER: owner, SEEN_BY: sees()},
                entrypoint=[],
                stdin_open=True,
                auto_remove=True,
                init=True,
                user=f"{os.getuid()}:{os.getgid()}",
                environment={VARIABLE: owner, "HOME": "/tmp"}
                | {variable: place for place, variable in self.elsewhere.values()},
                volumes=seen | {self._room: {"bind": self._room, "mode": "ro"}},
                working_dir=os.getcwd(),
                mem_limit=share,
                nano_cpus=len(os.sched_getaffinity(0)) * 10**9,
                pids_limit=_MOST_PROCESSES,
                **RIGHTS,
            )
            self._containers.append(container)
            self._inputs.append(container.attach_socket(params={"stdin": 1, "stream": 1}))
            container.start()
        except engine_errors() as error:
            name, why = container_name(self.run, node), getattr(error, "explanation", None) or error
            raise EmulationError(f"the engine did not start {name}: {why}") from None

    def _enter(self, node: Node, container: Any) -> None:
        """Give its network namespace the name by which all else finds it."""
        import docker.errors

        deadline, own = time.monotonic() + _START_SECONDS, f"{VARIABLE}={mark()[VARIABLE]}".encode()
        pid = 0
        while not pid or own not in _environment_of(pid):  # for a moment it is the runtime's
            if time.monotonic() > deadline:
                raise CapabilityError(
                    f"the process of {container.name} is not on this machine: the engine is elsewhere, or keeps its "
                    "containers in a virtual machine. Run it there, or use docker compose (docs/docker.md)."
                    if pid
                    else f"{container.name} did not start in {_START_SECONDS:g} s."
                )
            time.sleep(0.02)
            try:
                container.reload()
            except docker.errors.NotFound:
                raise CapabilityError(
                    f"the image '{self.image}' cannot run python: build one with 'make image'."
                ) from None
            pid = container.attrs["State"]["Pid"]
        place = Path(netns_path(node.name))
        place.touch()
        mount(f"/proc/{pid}/ns/net", str(place), None, MS_BIND)
        while len(inside := processes_in(node.name)) < _KEEPERS:
            if time.monotonic() > deadline:
                raise CapabilityError(f"{container.name} runs no python after {_START_SECONDS:g} s.")
            time.sleep(0.02)
        self._keepers |= {pid, *inside}

    def close(self) -> None:
        """Remove the containers, and with them what runs in them; a second time does nothing. Where the engine is gone,
        containers end with their standard inputs."""
        if self._counters is not None:
            self._counters.close()
            self._counters = None
        super().close()
        for stream in self._inputs:
            with suppress(OSError):
                stream.close()
        for container in self._containers:
            with suppress(*engine_errors()):  # it has ended, and is gone
                container.remove(force=True)
        self._inputs, self._containers = [], []
        if self._room is not None:
            shutil.rmtree(self._room, ignore_errors=True)
            self._room = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def check_alive(self) -> None:
        super().check_alive()
        for pid in self._keepers:
            if not os.path.exists(f"/proc/{pid}"):
                raise LinkError("a node's container has ended; nothing measured after that counts; run again.")

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
        before = processes_in(node.name)
        given = {key: value for key, value in (env or {}).items() if key not in _HOSTS_OWN}
        terminal = popen_kwargs.get("stdin")
        tty = ["--tty"] if isinstance(terminal, int) and terminal >= 0 and os.isatty(terminal) else []
        named = [f"--env={key}" for key in given]  # values stay out of the command line
        command = [
            "docker",
            "--host",
            engine_address(),
            "exec",
            "--interactive",
            *tty,
            *named,
            self._containers[node.index].id,
            *argv,
        ]
        process = subprocess.Popen(command, env={**os.environ, **given}, **popen_kwargs)
        deadline = time.monotonic() + _START_SECONDS
        while set(processes_in(node.name)) <= set(before) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return process

    def signal(self, node: Node, number: int) -> None:
        for pid in processes_in(node.name):
            if pid not in self._keepers:
                with suppress(OSError):
                    os.kill(pid, number)

    def counter(self, node: Node) -> dict[str, Any]:
        return {
            "kind": "passed",
            "node": node.name,
            "index": node.index,
            "socket": f"{self._room}/counters",
            "delays": self.delay_line.statistics_path,
        }

    def commands(self) -> list[str]:
        made = [
            f"# by the engine's API: container {container_name(self.run, node)} of {self.image}, without network, "
            "capabilities, or a root it could write"
            for node in self.network.nodes
        ]
        return [*made, *super().commands()]

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"backend": "docker", "image": self.image, "image_id": self._image_id}


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
