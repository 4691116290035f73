"""Where the nodes of a run are: in network namespaces, in containers, or plain processes of this machine."""

from pathlib import Path
from typing import Literal

from emulation.network import Network
from emulation.nodes.base import Backend
from emulation.nodes.host import HostBackend
from emulation.nodes.netns import NetnsBackend
from testbed.config.data import CORPORA
from testbed.runs.asked import BackendName

__all__ = ["make_nodes"]


def make_nodes(
    network: Network, backend: BackendName, *, run: str, image: str | None = None, folder: Path | None = None
) -> Backend:
    """Nodes not yet built. Containers are named after the run, and see `folder`, to write to, and corpora/, to read."""
    if backend == "host":
        return HostBackend(network)
    if backend == "netns":
        return NetnsBackend(network)
    from emulation.nodes.docker import DockerBackend
    from emulation.nodes.engine import IMAGE

    seen: dict[Path, Literal["ro", "rw"]] = {CORPORA.resolve(): "ro"} if CORPORA.is_dir() else {}
    if folder is not None:
        seen[folder.resolve()] = "rw"
    return DockerBackend(network, run=run, image=image or IMAGE, folders=seen)
