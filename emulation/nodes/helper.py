"""The process of ours in a container: does there what the driver of a network asks for, and ends with it.

    python -m emulation.nodes.helper SOCKET NAME

in a node     sends signals to its programs, says which there are
in a shaper   configures and reads the network that it shares with a node, or the switch's

It connects to the driver's socket and says its name (`emulation.nodes.rpc`). The driver's death closes the
connection, whatever killed it; that is the end of the helper, and of its container.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from emulation.errors import EmulationError
from emulation.kernel.commands import ip_json, iptables, run_batch, write_sysctl
from emulation.kernel.counters import open_end
from emulation.kernel.syscalls import netns_path
from emulation.nodes.readback import read_cuts, read_devices, try_netem
from emulation.nodes.rpc import Message, receive, send
from emulation.shaping.delays import lost_by_queues

__all__ = ["hand_over_end", "hand_over_namespace", "name_namespace", "programs", "signal_programs"]

_CONNECT_SECONDS = 5.0
_SIGNAL_SECONDS = 2.0


def programs() -> list[int]:
    """Every process of the container but the engine's init, this one, and what is still being started."""
    return [pid for pid in _others() if _is_started(pid)]


def signal_programs(number: int) -> None:
    """Send all of them a signal, also those that are being started, once they are; EmulationError if that fails."""
    waiting, deadline = set(_others()), time.monotonic() + _SIGNAL_SECONDS
    while waiting:
        late = time.monotonic() > deadline
        waiting -= {pid for pid in waiting if (late or _is_started(pid)) and _is_sent(pid, number)}
        waiting &= set(_others())
        if waiting and late:
            raise EmulationError(f"signal {number} does not reach the processes {sorted(waiting)} of this node.")
        time.sleep(0.002)


def _others() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())]


def _is_started(pid: int) -> bool:
    """Whether it is a program of this user's: until then it is the engine's, which lets nobody look into it."""
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb"):
        return True
    return False


def _is_sent(pid: int, number: int) -> bool:
    with suppress(OSError):
        os.kill(pid, number)
        return True
    return False


def name_namespace(name: str, descriptor: int) -> None:
    """Let ip(8) and `in_netns` find a network namespace by its name."""
    place = Path(netns_path(name))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")


def hand_over_namespace() -> tuple[None, list[int]]:
    """The present network namespace, into which another may then put an interface."""
    return None, [os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)]


def hand_over_end(device: str) -> tuple[int, list[int]]:
    """The index of a device of the present namespace, and a socket by which its counters are read."""
    sock, index = open_end(device)
    try:
        return index, [os.dup(sock.fileno())]
    finally:
        sock.close()


_GIVING = (hand_over_namespace, hand_over_end)
_TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task
    for task in (
        *(programs, signal_programs, name_namespace, *_GIVING),
        *(run_batch, write_sysctl, iptables, ip_json, read_devices, read_cuts, try_netem, lost_by_queues),
    )
}
"""Tasks that a driver may ask for, by name."""


def _do(asked: Message, received: list[int]) -> tuple[Message, list[int]]:
    try:
        task = _TASKS[asked["task"]]
        found = task(*asked["arguments"], *received)
    except EmulationError as error:
        return {"error": type(error).__name__, "said": str(error)}, []
    except Exception as error:
        return {"error": "EmulationError", "said": f"{asked.get('task')}: {type(error).__name__}: {error}"}, []
    value, descriptors = found if task in _GIVING else (found, [])
    return {"value": value, "descriptors": len(descriptors)}, descriptors


def main(path: str, name: str) -> None:
    """Serve until the driver is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, suppress(OSError, EOFError):
        sock.settimeout(_CONNECT_SECONDS)
        sock.connect(path)
        sock.settimeout(None)
        send(sock, {"name": name})
        while True:
            answer, descriptors = _do(*receive(sock))
            send(sock, answer, descriptors)
            for each in descriptors:
                os.close(each)


if __name__ == "__main__":
    main(*sys.argv[1:])
