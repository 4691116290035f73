"""The private world that a run lives in: namespaces of its own, which the kernel removes with its first
process.

    caller ── A (unshares) ── process 1 of the world: main()  ── nodes' processes

Nothing in a world has a name on the host. Each process of the chain is killed by the kernel when the one
before it dies (PR_SET_PDEATHSIG), and the death of process 1 kills its whole pid namespace: `kill -9`
anywhere leaves nothing behind.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from emulation.errors import CapabilityError, UsageError
from emulation.kernel import syscalls
from emulation.kernel.process_tag import mark
from emulation.kernel.unshare_errors import remedy_for

__all__ = ["run_in_world"]

_FORWARDED = {signal.SIGINT, signal.SIGTERM}
_SAME_SIGNAL_SECONDS = 1.0
"""A second signal within this time is the same one, delivered by two roads (timeout(1) does so)."""

_BESIDE_ENGINE = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET
_NAMESPACES = _BESIDE_ENGINE | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS


def run_in_world(main: Callable[[], int], *, beside_engine: bool = False) -> int:
    """Run `main` as the first process of a new world and return its exit status.

    Call it while the process still has one thread (before torch). `main` runs in a forked copy of this
    process, in a session of its own, and that copy ends with `os._exit` after flushing stdout and stderr:
    exit handlers do not run. SIGINT and SIGTERM are passed on once, as KeyboardInterrupt in `main`; a
    second one, a second later, kills the world. The status is 128 + n if signal n ended `main`, 130 if it
    was interrupted. If the machine refuses the namespaces, CapabilityError is raised here and `main` never
    starts.

    `beside_engine`: a world whose nodes are a container engine's. It sees the machine's processes, among which
    containers are, and the engine's socket in /run. Root has a network and mounts of its own in it; anybody else has
    nothing of its own, for containers are shaped by others (`emulation.nodes.sidecars`). What `main` starts must end by
    itself when `main` does.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise UsageError(
            "a world must be entered before any thread starts: call run_in_world first, then import torch."
        )
    sys.stdout.flush()
    sys.stderr.flush()
    refusal_read, refusal_write = os.pipe()
    caller, driver = os.getpid(), mark()
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child == 0:
        os.close(refusal_read)
        os.environ.update(driver)
        _live(lambda: _enter(caller, refusal_write, main, beside_engine))
    os.close(refusal_write)
    forward = _Forwarder(child)
    try:
        with os.fdopen(refusal_read) as pipe:
            forward.install()
            refusal = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        forward.remove()
    if refusal:
        remedy = remedy_for(refusal)
        raise CapabilityError(
            f"this machine refuses a private world ({refusal}). What to change: {remedy}.",
            reason=refusal,
            remedy=remedy,
        )
    if forward.killed:
        return 130
    return status if status >= 0 else 128 - status


class _Forwarder:
    """Passes SIGINT and SIGTERM on to the next process of the chain: the first gently, a later one as
    SIGKILL."""

    def __init__(self, child: int) -> None:
        self.child = child
        self.killed = False
        self._first: float | None = None
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        for number in _FORWARDED:
            self._previous[number] = signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)

    def remove(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            os.kill(self.child, number)
        elif now - self._first > _SAME_SIGNAL_SECONDS:
            self.killed = True
            os.kill(self.child, signal.SIGKILL)


def _live(body: Callable[[], int]) -> NoReturn:
    """Run `body` as a whole process: whatever happens, this copy never returns into the caller's code."""
    status = 1
    try:
        status = body()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 1
    os._exit(status & 0xFF)


def _enter(caller: int, refusal_pipe: int, main: Callable[[], int], beside_engine: bool) -> int:
    """Process A: into new namespaces, fork process 1, wait for it and pass on its status."""
    syscalls.die_with_parent()
    if os.getppid() != caller:
        os._exit(1)
    os.setsid()  # a terminal's Ctrl-C reaches the caller alone, who passes it on once
    try:
        if not beside_engine:
            _new_namespaces()
        elif os.geteuid() == 0:
            syscalls.unshare(_BESIDE_ENGINE)
    except OSError as error:
        _refuse(refusal_pipe, error)
    syscalls.die_with_parent()  # the new credentials cleared it
    if os.getppid() != caller:
        os._exit(1)
    alive_read, alive_write = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(alive_write)
        _live(lambda: _first_process(alive_read, refusal_pipe, main, beside_engine))
    os.close(alive_read)
    os.close(refusal_pipe)
    _Forwarder(first).install()
    status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    os._exit(status if status >= 0 else 128 - status)


def _new_namespaces() -> None:
    """Unshare; without CAP_SYS_ADMIN a user namespace comes first, in which we are root and own the
    others."""
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        try:
            syscalls.unshare(_NAMESPACES)
            return
        except PermissionError:
            pass
    syscalls.unshare(_NAMESPACES | syscalls.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _first_process(alive_pipe: int, refusal_pipe: int, main: Callable[[], int], beside_engine: bool) -> int:
    """Process 1 of the world (beside an engine just its first): furnish it, then run `main`."""
    syscalls.die_with_parent()
    os.set_blocking(alive_pipe, False)
    try:
        os.read(alive_pipe, 1)  # getppid() is 0 in here whether the parent lives or not; its end of a pipe tells
        os._exit(1)
    except BlockingIOError:
        os.close(alive_pipe)
    try:
        if not beside_engine:
            _furnish()
        elif os.geteuid() == 0:
            _furnish_beside_engine()
    except OSError as error:
        _refuse(refusal_pipe, error)
    for number in _FORWARDED:
        signal.signal(number, signal.default_int_handler)
    os.close(refusal_pipe)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    return main()


def _furnish() -> None:
    """Private mounts, a /proc of this pid namespace, an empty /run for `ip netns`, an empty /dev/shm, `lo`
    up."""
    guarded = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("proc", "/proc", "proc", guarded | syscalls.MS_NOEXEC)
    syscalls.mount("tmpfs", "/run", "tmpfs", guarded, "mode=755")
    syscalls.mount("tmpfs", "/dev/shm", "tmpfs", guarded, "mode=1777")
    os.mkdir("/run/netns")
    syscalls.loopback_up()


def _furnish_beside_engine() -> None:
    """Private mounts, a /run of our own with an empty /run/netns, in which all else of the machine's /run is found."""
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    before = os.open("/run", os.O_PATH | os.O_CLOEXEC)
    syscalls.mount("tmpfs", "/run", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755")
    for name in ("netns", "machine"):
        os.mkdir(f"/run/{name}")
    syscalls.mount(f"/proc/self/fd/{before}", "/run/machine", None, syscalls.MS_BIND | syscalls.MS_REC)
    os.close(before)
    for name in os.listdir("/run/machine"):
        if name not in ("netns", "machine"):
            os.symlink(f"/run/machine/{name}", f"/run/{name}")
    syscalls.loopback_up()


def _refuse(pipe: int, error: OSError) -> NoReturn:
    """Tell the caller why there is no world."""
    os.write(pipe, (error.strerror or str(error)).encode())
    os._exit(1)
