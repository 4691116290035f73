"""One run at a time on a machine: two at once disturb each other's times.

The lock is a file that every user may open and lock, and nobody needs to write to; the kernel lets go of it when its
holder dies. What any local user could put in its place (a pipe, a link), or hold without being a run, keeps nobody from
working: the lock is then one of the user's own, with a warning.
"""

import fcntl
import os
import pwd
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import UsageError

__all__ = ["machine_lock"]

_FOLDER = Path(os.environ.get("TESTBED_LOCK_FOLDER", "/tmp"))
"""Where runs take turns on this machine. Runs whose folders differ do not see each other, and disturb each other
without a word: for suites that pack slow links side by side."""
_NAMES = ("slowlink-testbed.lock", "slowlink-testbed.shared.lock")
_PROGRAM = b"testbed"
"""In the command line of a run."""


class _NoLockError(Exception):
    """What is there is no file of ours."""


@dataclass(frozen=True, kw_only=True)
class _Holder:
    pid: int
    user: str
    is_run: bool
    """Whether it is one of ours, as far as its command line says."""


@contextmanager
def machine_lock(*, share: bool) -> Iterator[None]:
    """Hold this machine for one run.

    `share` goes on beside another run, with a warning; a run that does not share is refused beside one that does.
    Raises `UsageError` that names who holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_held(_FOLDER, share=share))
        except _NoLockError as error:
            print(
                f"warning: {error}: this run holds a lock of yours alone, and does not see runs of other users, which "
                "would disturb its times",
                file=sys.stderr,
            )
            stack.enter_context(_held(_own_folder(), share=share))
        yield


@contextmanager
def _held(folder: Path, *, share: bool) -> Iterator[None]:
    """The lock in this folder; raises `_NoLockError` where that is not to be had there."""
    with ExitStack() as stack:
        alone, shared = (stack.enter_context(_open(folder / name)) for name in _NAMES)
        busy = [each for each in (alone, shared) if not _lock(each, fcntl.LOCK_EX)]
        if busy and not share:
            raise _refusal(busy[0], folder)
        if busy:
            print("warning: another run is using this machine; times of both will suffer", file=sys.stderr)
        if share:
            fcntl.flock(alone, fcntl.LOCK_UN)
            fcntl.flock(shared, fcntl.LOCK_UN)
            _lock(shared, fcntl.LOCK_SH)
        else:
            fcntl.flock(shared, fcntl.LOCK_UN)  # held by runs that share; it was free
        yield


def _refusal(descriptor: int, folder: Path) -> Exception:
    """Why a lock is not to be had."""
    holders = _holders(descriptor)
    runs = [each for each in holders if each.is_run]
    if not runs and folder == _FOLDER:
        who = ", ".join(f"process {each.pid} of {each.user}" for each in holders) or "a process not seen from here"
        return _NoLockError(f"the lock in {folder} is held by {who}, which is no run of this testbed")
    named = f" (process {runs[0].pid} of {runs[0].user})" if runs else ""
    return UsageError(
        f"another run{named} is using this machine, and two at once disturb each other's times: "
        "wait for it to end, or type --share to run beside it all the same"
    )


def _holders(descriptor: int) -> list[_Holder]:
    """Who holds a lock on this file, as the kernel says (proc(5), /proc/locks); the unseen are left out."""
    own, found = os.fstat(descriptor), []
    place = f"{os.major(own.st_dev):02x}:{os.minor(own.st_dev):02x}:{own.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if "FLOCK" in fields and place in fields and "->" not in fields:
                found += _holder(int(fields[fields.index(place) - 1]))
    return found


def _holder(pid: int) -> list[_Holder]:
    try:
        uid, command = os.stat(f"/proc/{pid}").st_uid, Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = f"user {uid}"
    return [_Holder(pid=pid, user=user, is_run=_PROGRAM in command or pid == os.getpid())]


def _own_folder() -> Path:
    """A lock that this user's runs alone share."""
    folder = Path(f"{os.environ.get('XDG_RUNTIME_DIR') or Path.home() / '.cache'}") / "slowlink-testbed"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"a lock of your own cannot be made in {folder}: {error.strerror}") from None
    return folder


@contextmanager
def _open(path: Path) -> Iterator[int]:
    """An open descriptor of a file that every user may lock. It is never waited for."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = _opened(path, flags)
    except OSError as error:
        raise _NoLockError(f"{path} is no lock ({error.strerror})") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _NoLockError(f"{path} is no regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _opened(path: Path, flags: int) -> int:
    with suppress(FileNotFoundError):
        return os.open(path, flags)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o444)
    except FileExistsError:  # somebody has made it meanwhile
        return os.open(path, flags)
    os.fchmod(descriptor, 0o444)
    return descriptor


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
