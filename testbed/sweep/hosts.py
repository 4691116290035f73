"""Orders for processes, given out to machines by Ray (extra `sweep`): one at a time on each.

A cell needs its host's network and cores to itself.

Every host has one of the resource `testbed_host`; a head or worker is started with it:

    ray start --head --node-ip-address=ADDRESS --resources='{"testbed_host": 1}' --include-dashboard=false
    ray start --address=ADDRESS:6379 --resources='{"testbed_host": 1}'

Ray listens where it is told to. Started by us (no address given) it listens on loopback alone and has no dashboard. An
order whose host is lost is given to another; results come back as files.
"""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from testbed.child import Child, Message
from testbed.errors import UsageError

__all__ = ["RESOURCE", "Hosts"]

RESOURCE = "testbed_host"
_RETRIES = 3
_LOG_LINES = 12


class Hosts:
    """`with Hosts(address) as hosts: for order, messages in hosts.serve(module, orders, folder)`."""

    def __init__(self, address: str | None) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("Ray is not installed: type pip install 'slowlink-testbed[sweep]'") from None
        self.ray: Any = ray
        self.address = address

    def __enter__(self) -> "Hosts":
        init = partial(self.ray.init, log_to_driver=False, logging_level="error")
        if self.address is None:
            own = {"_node_ip_address": "127.0.0.1", "num_cpus": 1, "resources": {RESOURCE: 1}}
            init(address="local", include_dashboard=False, **own)  # never one that runs already
        else:
            try:
                init(address=self.address)
            except ConnectionError as error:
                raise UsageError(f"there is no Ray at {self.address}: {str(error).splitlines()[0]}") from None
        if not self.ray.cluster_resources().get(RESOURCE):
            self.ray.shutdown()
            raise UsageError(
                f"no host of the Ray at {self.address} has the resource {RESOURCE}: start its workers with "
                f"--resources='{{\"{RESOURCE}\": 1}}'"
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()

    def serve(self, module: str, orders: list[Message], folder: Path) -> Iterator[tuple[Message, list[Message]]]:
        """Each order with what was said of it, as they end; the files that were written lie below `folder` by then."""
        remote = self.ray.remote(_serve).options(num_cpus=0, resources={RESOURCE: 1}, max_retries=_RETRIES)
        waiting = {remote.remote(module, order): order for order in orders}
        while waiting:
            (ended,), _ = self.ray.wait(list(waiting), num_returns=1)
            order = waiting.pop(ended)
            try:
                messages, files = self.ray.get(ended)
            except self.ray.exceptions.RayTaskError as error:
                why = f"a host could not run it: {str(error.cause).splitlines()[0]}"
                yield order, [{"failed": None, "why": why}]
                continue
            except self.ray.exceptions.RayError as error:
                why = f"its hosts were lost {_RETRIES + 1} times: {type(error).__name__}"
                yield order, [{"failed": None, "why": why}]
                continue
            _put(files, folder)
            yield order, messages


def _serve(module: str, order: Message) -> tuple[list[Message], dict[str, bytes]]:
    """On a host: one process for the order; its messages, and every file that it wrote."""
    with tempfile.TemporaryDirectory(prefix="testbed-") as place:
        folder = Path(place) / "results"
        log = folder / "logs" / f"{Path(place).name}.log"
        child = Child(module, log)
        messages = list(child.answers({**order, "folder": str(folder / order["folder"])}))
        status = child.status()
        if status and not any("failed" in message for message in messages):
            last = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
            messages.append({"failed": None, "why": f"its process ended with status {status}: {last}"})
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return messages, files


def _put(files: dict[str, bytes], folder: Path) -> None:
    """Written by rename, a summary last: it says that its cell is done; of an earlier attempt nothing is left."""
    for name in files:
        if name.endswith("summary.json"):
            shutil.rmtree((folder / name).parent, ignore_errors=True)
    for name, data in sorted(files.items(), key=lambda each: each[0].endswith("summary.json")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.write_bytes(data)
        partial.replace(target)
