"""Find a usable container engine, list the containers that carry our labels, remove those whose driver has ended.

Every container of ours carries labels: whose it is (the mark of its driver, `emulation.kernel.process_tag`) and of
which run. One whose driver is gone belongs to nobody, and is removed by the next run and by `testbed clean`. Nothing
without our label is ever touched.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from emulation.errors import CapabilityError, EmulationError, UsageError
from emulation.kernel.process_tag import VARIABLE, lives, mark, sees
from emulation.nodes.readback import SWITCH
from emulation.spec.network import Node

__all__ = [
    "IMAGE",
    "OWNER",
    "RIGHTS",
    "RUN",
    "SEEN_BY",
    "check",
    "container_name",
    "engine",
    "engine_address",
    "engine_errors",
    "has_engine",
    "image_digest",
    "make_room",
    "orphaned",
    "remove",
    "require_image",
    "require_names",
    "rooms",
    "said_by",
    "shaper_image",
    "shaper_of",
]

IMAGE = "slowlink-testbed"
"""Unless another is asked for."""
RUN, OWNER, SEEN_BY = (f"org.slowlink-testbed.{name}" for name in ("run", "owner", "pid-namespace"))
RIGHTS: dict[str, Any] = {
    "network_mode": "none",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "read_only": True,
    "tmpfs": {"/tmp": "mode=1777"},
}
"""What a container of ours may: next to nothing."""
_ROOM = "testbed-node."
_ROOM_NAME = re.compile(r"testbed-node\.(\d+)-(\d+)-(\d+)\.\w+")
_NONE_NEEDED = "or leave --backend docker out: netns nodes need no engine"


def engine_address() -> str:
    """Of the engine that is used, whatever the client's contexts say."""
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def has_engine() -> bool:
    """Whether an engine's socket exists on this machine (not whether this user may open it)."""
    return os.path.exists(engine_address().removeprefix("unix://"))


def engine() -> Any:
    """A client of the engine of this machine; CapabilityError that says what is missing."""
    address = engine_address()
    if not address.startswith("unix://"):
        raise CapabilityError(
            f"the engine at {address} is another machine's, and cannot be shaped from here: type it there, "
            f"{_NONE_NEEDED}."
        )
    path = address.removeprefix("unix://")
    if shutil.which("docker") is None:
        raise CapabilityError(f"no docker client is installed: 'sudo apt-get install docker.io', {_NONE_NEEDED}.")
    if not os.path.exists(path):
        raise CapabilityError(
            f"no container engine is running here ({path} is not there): 'sudo apt-get install docker.io' and 'sudo "
            f"systemctl start docker' (if 'docker ps' works, it speaks of another, which DOCKER_HOST=unix://… names), "
            f"{_NONE_NEEDED}."
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise CapabilityError(
            f"{path} may not be used by you: type it with sudo, or 'sudo usermod -aG "
            f"docker $USER' (which is as much as root) and log in anew, {_NONE_NEEDED}."
        )
    import docker

    try:
        client = docker.DockerClient(base_url=address, timeout=30)
        about = client.info()
    except Exception as error:  # whatever it is, there is no engine to talk to
        raise CapabilityError(f"the engine at {path} does not answer ({error}): start it, {_NONE_NEEDED}.") from None
    if "Docker Desktop" in about.get("OperatingSystem", ""):
        client.close()
        raise CapabilityError(
            "Docker Desktop keeps containers in a virtual machine, where they cannot be shaped from here: use docker "
            f"compose, whose shapers run beside the nodes (docs/docker.md), {_NONE_NEEDED}."
        )
    if any(each.startswith(("name=userns", "name=rootless")) for each in about.get("SecurityOptions") or ()):
        client.close()
        raise CapabilityError(
            f"the engine at {path} gives containers other users than this machine's (userns-remap, rootless), who may "
            f"not use what a run hands them: use an engine without, or docker compose (docs/docker.md), {_NONE_NEEDED}."
        )
    return client


def check(image: str, program: str, run: str | None = None, nodes: Sequence[Node] = ()) -> str:
    """What a Python program prints in this image (`said_by`).

    CapabilityError unless there is an engine that has it and that we may shape; UsageError if another run's containers
    have the names of this one's. Nothing is left.
    """
    client = engine()
    try:
        require_image(client, image)
        if run is not None:
            require_names(client, run, nodes)
        return said_by(client, image, program)
    except engine_errors() as error:
        raise CapabilityError(f"the engine does not answer ({error}): start it anew, {_NONE_NEEDED}.") from None
    finally:
        client.close()


def image_digest(image: str) -> str | None:
    """The digest of what containers of this image are made of; None if there is no engine, or it has none."""
    try:
        client = engine()
    except CapabilityError:
        return None
    try:
        return client.images.get(image).id
    except engine_errors():
        return None
    finally:
        client.close()


def engine_errors() -> tuple[type[Exception], ...]:
    """What a client raises where its engine refuses, is slow, or is gone."""
    import docker.errors
    import requests

    return docker.errors.DockerException, requests.RequestException


def said_by(client: Any, image: str, program: str) -> str:
    """What a Python program prints in a container of this image that may nothing and is gone afterwards."""
    import docker.errors

    try:
        printed = client.containers.run(
            image,
            ["python", "-c", program],
            entrypoint=[],
            remove=True,
            labels={OWNER: mark()[VARIABLE], SEEN_BY: sees()},
            **RIGHTS,
        )
    except docker.errors.ContainerError as error:
        said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else f"{error.stderr}"
        why = said.strip().splitlines() or ["it said nothing"]
        raise CapabilityError(
            f"the image '{image}' does not hold this testbed ({why[-1]}): build it with 'make image'."
        ) from None
    except docker.errors.APIError:
        raise CapabilityError(f"the image '{image}' cannot run python: build one with 'make image'.") from None
    return printed.decode()


def container_name(run: str, name: str) -> str:
    return f"testbed-{run}-{name}"


def shaper_of(name: str) -> str:
    """What shapes a node, by its network's name; the switch shapes itself."""
    return name if name == SWITCH else f"{name}-shaper"


def shaper_image(image: str) -> str:
    """The image of what shapes nodes of this one: beside those of a node, tc and iptables are in it."""
    return f"{image}-shaper"


def require_names(client: Any, run: str, nodes: Sequence[Node]) -> None:
    """Raise UsageError if a container that will not be removed has the name of one of these."""
    gone = {each.id for each in orphaned(client)}
    taken = {each.name for each in client.containers.list(all=True, ignore_removed=True) if each.id not in gone}
    names = [node.name for node in nodes]
    if found := sorted(taken & {container_name(run, name) for name in (*names, *map(shaper_of, names), SWITCH)}):
        raise UsageError(
            f"this engine has a container named {found[0]} already: another run is called '{run}'; "
            "give this one another name (--name, NAME=… of emulate), or wait for the other."
        )


def require_image(client: Any, image: str) -> Any:
    """The image, which is never pulled: a run must be of what is here."""
    import docker.errors

    try:
        return client.images.get(image)
    except docker.errors.ImageNotFound:
        raise CapabilityError(
            f"there is no image '{image}' on the engine at {engine_address()}: type 'make image"
            f"{_flag(image)}', or name another with --image."
        ) from None
    except docker.errors.APIError as error:
        raise CapabilityError(f"the engine has no image '{image}': {error.explanation or error}.") from None


def _flag(image: str) -> str:
    """What names it to make, which builds a node's image and, of that name, its shaper's."""
    node = image.removesuffix(shaper_image(""))
    return "" if node == IMAGE else f" IMAGE={node}"


def orphaned(client: Any) -> list[Any]:
    """Our containers whose driver has exited. Those started from another PID namespace are skipped: their PIDs mean
    nothing here."""
    filters = {"label": [OWNER, f"{SEEN_BY}={sees()}"]}
    marked = client.containers.list(all=True, filters=filters, ignore_removed=True)
    return [each for each in marked if not lives(each.labels[OWNER])]


def remove(containers: list[Any]) -> None:
    """End them, and what drivers that are gone have left in temporary folders."""
    for container in containers:
        with suppress(*engine_errors()):  # it is being removed already
            container.remove(force=True, v=True)
    for room in rooms():
        shutil.rmtree(room, ignore_errors=True)


def rooms() -> list[Path]:
    """Folders of ours (`make_room`) whose driver is gone."""
    found = []
    for room in sorted(Path(tempfile.gettempdir()).glob(f"{_ROOM}*")):
        name, about = _ROOM_NAME.fullmatch(room.name), room.lstat()
        if name and name[3] == sees() and stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid():
            found += [] if lives(f"{name[1]}:{name[2]}") else [room]
    return found


def make_room(owner: str) -> str:
    """A folder for a driver's sockets, which containers see; it can be told whose it is."""
    try:
        return tempfile.mkdtemp(prefix=f"{_ROOM}{owner.replace(':', '-')}-{sees()}.")
    except OSError as error:
        raise EmulationError(f"no temporary folder could be made: {error}") from None
