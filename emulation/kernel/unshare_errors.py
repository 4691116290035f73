"""Why a machine refuses a private world: the switch that is to blame, and how to turn it."""

import os
from pathlib import Path

__all__ = ["EVERYTHING", "remedy_for"]

EVERYTHING = (
    "run as root, or allow unprivileged user namespaces: "
    "'sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0' (Ubuntu 24.04), "
    "'sudo sysctl -w kernel.unprivileged_userns_clone=1' (Debian), "
    "'sudo sysctl -w user.max_user_namespaces=10000'; in a container: docker run --privileged, or "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined"
)
"""Where no switch can be blamed."""

_LIMITS = ("user", "mnt", "net", "pid", "ipc", "uts")


def remedy_for(said: str, *, proc: Path = Path("/proc"), root: bool | None = None) -> str:
    """What to change, after a world was refused with these words; `proc` and `root` are of the process refused."""
    root = os.getuid() == 0 if root is None else root
    limits = [f"user.max_{kind}_namespaces" for kind in _LIMITS]
    spent = [name for name in limits if _read(proc, f"sys/{name.replace('.', '/')}") == "0"]
    if spent:
        switches = " ".join(f"{name}=10000" for name in spent)
        return f"this machine allows no namespaces: 'sudo sysctl -w {switches}'"
    if "No space left" in said:
        return (
            "too many namespaces, or too many within each other: end other containers, or "
            "'sudo sysctl -w user.max_user_namespaces=10000 user.max_net_namespaces=10000'"
        )
    if not root and _read(proc, "sys/kernel/unprivileged_userns_clone") == "0":
        return "user namespaces are for root only: 'sudo sysctl -w kernel.unprivileged_userns_clone=1', or run as root"
    if not root and _read(proc, "sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor restricts user namespaces: "
            "'sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0', or run as root"
        )
    if not (proc / "self/ns/user").exists() and not root:
        return "this kernel was built without user namespaces: run as root"
    return _container_remedy(said, proc) or EVERYTHING


def _container_remedy(said: str, proc: Path) -> str | None:
    """Which of a container's three fences it was, as far as can be told."""
    fences = []
    if "Seccomp:\t2" in _read(proc, "self/status"):
        fences.append("--security-opt seccomp=unconfined")
    if _read(proc, "self/attr/current").endswith("(enforce)"):
        fences.append("--security-opt apparmor=unconfined")
    if "mount proc" in said or (fences and _masked(proc)):
        fences.append("--security-opt systempaths=unconfined")
    if not fences:
        return None
    return f"this container forbids it: start it with 'docker run {' '.join(fences)} …', or with --privileged"


def _masked(proc: Path) -> bool:
    """Whether parts of /proc are hidden, so that no new one may be mounted."""
    points = [line.split()[4] for line in _read(proc, "self/mountinfo").splitlines()]
    return any(point.startswith("/proc/") and not point.startswith("/proc/sys/fs/") for point in points)


def _read(proc: Path, name: str) -> str:
    try:
        return (proc / name).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
