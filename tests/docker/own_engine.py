"""A container engine of the tests' own, in network and mount namespaces of its own: nothing of it reaches the host.

It is ended by its pid, and leaves no mount, bridge or cgroup. The base image is made from this machine's own Python,
for there may be no registry to pull one from.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from contextlib import suppress
from importlib.metadata import distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from emulation.kernel.commands import tool_path

BASE = "slowlink-testbed-test-base"
"""What the Dockerfile begins with here."""
_START_SECONDS = 30
_TOOLS = (
    *("sh", "cat", "ls", "id", "rm", "sleep", "ip", "tc"),
    *(f"iptables{flavour}{suffix}" for flavour in ("", "-nft", "-legacy") for suffix in ("", "-restore", "-save")),
)
"""What a node's image has of them, and a shaper's."""
_LATER = (
    *("libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libm.so.6", "libresolv.so.2", "libnss_dns.so.2"),
    *("libnss_files.so.2", "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1"),
)
_UNUSED = {"include", "test", "tests"}
"""Folders of packages that the Dockerfile removes."""
_CGROUPS = Path("/sys/fs/cgroup")


class OwnEngine:
    """`with OwnEngine().start():` sets DOCKER_HOST for this process and its children."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="engine."))
        self.folder.chmod(0o711)  # whoever is in its socket's group may reach that
        self.socket = self.folder / "docker.sock"
        self._cgroups = cgroups()
        self._process: subprocess.Popen[bytes] | None = None
        self._before = os.environ.get("DOCKER_HOST")

    def start(self) -> "OwnEngine":
        """RuntimeError, with what it said, if it does not."""
        daemon = [
            *("dockerd", "--data-root", self.folder / "data", "--exec-root", self.folder / "exec"),
            *("--pidfile", self.folder / "docker.pid", "-H", f"unix://{self.socket}"),
            *("--iptables=false", "--ip-masq=false", "--ip-forward=false", "--bridge=none"),
        ]
        shell = ["sh", "-c", 'ip link set lo up; exec "$@"', "sh", *map(str, daemon)]
        leash = ["setpriv", "--pdeathsig", "TERM", "unshare", "--net", "--mount", "--propagation", "private", *shell]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(leash, stdout=log, stderr=log, start_new_session=True)
        os.environ["DOCKER_HOST"] = f"unix://{self.socket}"
        deadline = time.monotonic() + _START_SECONDS
        while subprocess.run(["docker", "version"], capture_output=True, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log").read_text(errors="replace")[-2000:]
                self.__exit__()
                raise RuntimeError(f"the engine did not start: {said}")
            time.sleep(0.1)
        return self

    def __enter__(self) -> "OwnEngine":
        return self

    def __exit__(self, *_: object) -> None:
        left = subprocess.run(["docker", "ps", "-aq"], capture_output=True, text=True, check=False).stdout.split()
        if left:
            subprocess.run(["docker", "rm", "-f", *left], capture_output=True, check=False)
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=30)
        if self._before is None:
            os.environ.pop("DOCKER_HOST", None)
        else:
            os.environ["DOCKER_HOST"] = self._before
        for path in sorted(cgroups() - self._cgroups, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                path.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)


def cgroups() -> set[Path]:
    """Every group that an engine may have made."""
    return {path for path in _CGROUPS.rglob("docker*") if path.is_dir()} | {
        path for place in _CGROUPS.rglob("docker") if place.is_dir() for path in place.rglob("*") if path.is_dir()
    }


def make_base(name: str, *, packages: bool) -> None:
    """This machine's Python, and the libraries that it links, as the image that the Dockerfile begins with; `packages`:
    with what the testbed needs where the Dockerfile installs it, so that nothing is left to install but the testbed."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            _fill(tar)
            for path in sorted(_packages()) if packages else ():
                tar.add(path, f"{_SITE}/{path.relative_to(_here())}", recursive=False)
        file.seek(0)
        done = subprocess.run(
            ["docker", "import", "-c", "ENV PATH=/usr/local/bin:/usr/bin:/bin", "-", name],
            stdin=file,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def _fill(tar: tarfile.TarFile) -> None:
    prefix, version = Path(sys.base_prefix), f"python3.{sys.version_info.minor}"
    python = prefix / "bin" / version
    library = prefix / "lib" / version
    unwanted = {"test", "tests", "__pycache__", "site-packages", "idlelib", "tkinter", "turtledemo"}

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(member.name).parts[4:]
        return None if unwanted & set(parts) or any(part.startswith("config-") for part in parts) else member

    tar.add(library, f"usr/local/lib/{version}", filter=wanted)
    tar.add(python, f"usr/local/bin/{version}")
    for name in ("python3", "python"):
        _link(tar, f"usr/local/bin/{name}", version)
    tools = {name: Path(found).resolve() for name in _TOOLS if (found := tool_path(name))}
    modules = [*(library / "lib-dynload").glob("*.so"), *Path("/usr/lib").glob("*/xtables/*.so")]
    for name, path in tools.items():
        tar.add(path, f"usr/bin/{name}")
    for path in Path("/usr/lib").glob("*/xtables"):
        tar.add(path, str(path).lstrip("/"))
    _link(tar, "bin", "usr/bin")
    for path in sorted(_libraries([python, *tools.values(), *modules])):
        tar.add(path.resolve(), str(path).lstrip("/"))
    for name in ("tmp", "proc", "sys", "dev", "etc", "run"):
        folder = tarfile.TarInfo(name)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        tar.addfile(folder)
    for name, text in (("etc/passwd", "root:x:0:0::/tmp:/bin/sh\n"), ("etc/group", "root:x:0:\n")):
        entry = tarfile.TarInfo(name)
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text.encode()))


_SITE = f"opt/testbed/lib/python3.{sys.version_info.minor}/site-packages"


def _here() -> Path:
    return Path(sysconfig.get_path("purelib"))


def _packages() -> set[Path]:
    """Every file of every distribution that the testbed needs, as they are installed here."""
    known: set[str] = set()
    found: set[Path] = set()
    asked = requires("slowlink-testbed") or []
    while asked:
        one = Requirement(asked.pop())
        name = canonicalize_name(one.name)
        if name in known or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        known.add(name)
        parts = distribution(name)
        asked += parts.requires or []
        for file in parts.files or ():
            path = _here() / str(file)
            if ".." not in file.parts and not _UNUSED & {*file.parts} and path.is_file():
                found.add(path)
    return found


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


def _libraries(programs: list[Path]) -> set[Path]:
    """What the dynamic linker loads for them, and itself; beside those, what wheels and name service ask for."""
    said = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    found = {Path(path) for path in re.findall(r"(/\S+\.so\S*) \(0x", said)}
    folder = next(path.parent for path in found if path.name == "libc.so.6")
    return found | {folder / name for name in _LATER if (folder / name).exists()}
