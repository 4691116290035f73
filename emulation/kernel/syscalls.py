"""The few Linux calls that Python 3.11 does not wrap: namespaces, mounts, the parent-death signal."""

import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = [
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_REC",
    "at",
    "die_with_parent",
    "in_netns",
    "loopback_up",
    "mount",
    "named",
    "netns_path",
    "unshare",
]

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/sockios.h
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """unshare(2): new namespaces for this process (a new pid namespace: for its next children)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None)
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), data.encode()), f"mount {kind or 'flags'} on {target}")


def die_with_parent() -> None:
    """Have the kernel send SIGKILL here when the thread that forked this process ends (prctl(2)).

    A change of credentials clears it: call it after those, then check that the parent is still there.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def loopback_up() -> None:
    """Bring `lo` up in the current network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH22x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _IFF_UP))


def netns_path(name: str) -> str:
    """Where a named network namespace is found inside the world."""
    return f"/run/netns/{name}"


@contextmanager
def in_netns(name: str | None) -> Iterator[None]:
    """This thread is in network namespace `name` inside the block; sockets opened there stay there. None: no other.

    Where it is there already it needs no right to enter.
    """
    if name is None or os.stat(netns_path(name)).st_ino == os.stat("/proc/thread-self/ns/net").st_ino:
        yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(netns_path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(there, CLONE_NEWNET), f"setns to {name}")
        finally:
            os.close(there)
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "setns back home")
    finally:
        os.close(home)


@contextmanager
def named(host: str) -> Iterator[None]:
    """Processes that this thread starts inside the block are on a host of this name (uts_namespaces(7))."""
    home = os.open("/proc/thread-self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWUTS)
        try:
            socket.sethostname(host)
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWUTS), "setns back home")
    finally:
        os.close(home)


def at(netns: str | None, task: Callable[..., T], *arguments: object) -> T:
    """What `task` gives in a network namespace."""
    with in_netns(netns):
        return task(*arguments)
