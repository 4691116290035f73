"""Where the nodes of a run are: in network namespaces, in containers, or plain processes of this machine."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from emulation.errors import CapabilityError
from emulation.nodes.base import Backend
from emulation.nodes.host import HostBackend
from emulation.nodes.netns import NetnsBackend
from emulation.spec.network import Network, Node
from testbed.config.data import CORPORA, STDLIB_FOLDER, standard_library_folder
from testbed.records import Interpreter
from testbed.settings.network_flags import BackendName

__all__ = ["image_digest", "make_nodes", "require_image"]

_STDLIB_PLACE = "/stdlib"
_ABOUT = """
import json
from testbed.rundir.directory import interpreter
try:
    from testbed.rundir.identity import program_sha256
except ImportError:  # older sources than these
    program_sha256 = str
print(json.dumps({"program_sha256": program_sha256(), **vars(interpreter())}))
"""


def make_nodes(
    network: Network,
    backend: BackendName,
    *,
    run: str,
    image: str | None = None,
    folder: Path | None = None,
    corpus: Path | None = None,
) -> Backend:
    """Nodes not yet built. Containers are named after the run; they see `folder`, to write to, and corpora/, `corpus`
    and this machine's standard library, to read."""
    if backend == "host":
        return HostBackend(network)
    if backend == "netns":
        return NetnsBackend(network)
    from emulation.nodes.docker import DockerBackend
    from emulation.nodes.engine import IMAGE
    from emulation.nodes.sidecars import SidecarBackend

    seen: dict[Path, Literal["ro", "rw"]] = {CORPORA.absolute(): "ro"} if CORPORA.is_dir() else {}
    if corpus is not None:
        seen[corpus.absolute()] = "ro"
    if folder is not None:
        seen[folder.absolute()] = "rw"
    read = {standard_library_folder(): (_STDLIB_PLACE, STDLIB_FOLDER)}
    kind = DockerBackend if os.geteuid() == 0 else SidecarBackend
    return kind(network, run=run, image=image or IMAGE, folders=seen, elsewhere=read)


def image_digest(image: str | None) -> str | None:
    """Of what containers are made of, by content; None if this machine's engine has no such image."""
    from emulation.nodes.engine import IMAGE
    from emulation.nodes.engine import image_digest as digest

    return digest(image or IMAGE)


def require_image(image: str | None, run: str | None = None, nodes: Sequence[Node] = ()) -> Interpreter:
    """What programs of the image are run by (`interpreter`); nothing is created.

    CapabilityError unless this machine's engine has it and its sources are this checkout's; UsageError if another run's
    containers have these names.
    """
    from emulation.nodes.engine import IMAGE, check, shaper_image
    from testbed.rundir.identity import program_sha256

    image = image or IMAGE
    shapers = [] if os.geteuid() == 0 else [shaper_image(image)]
    for each in (*shapers, image):
        about = json.loads(check(each, _ABOUT, run, nodes))
        if about.pop("program_sha256") != program_sha256():
            raise CapabilityError(
                f"the image '{each}' has other sources than this checkout: build it again ('make image'), so that what "
                "is measured is what you read."
            )
    return Interpreter(**about)
