"""A Ray of a head and workers, in a world whose only network is its own loopback: what two orders came to.

The first worker dies when it has begun; another comes, and does it all. `python -m tests.sweep.lost_host FOLDER` prints
what was said of the orders, and how many had begun at each moment. `… FOLDER none`: there is no worker for us.
`… FOLDER stranger`: the worker has other sources; `… FOLDER twin`: the same ones, elsewhere.
"""

import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from emulation.kernel.world import run_in_world

_WAIT_SECONDS = 60
_MODULE = "tests.sweep.slow_order"
_HERE = {"node_ip_address": "127.0.0.1", "num_cpus": 1}


def _head() -> Any:
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, head_node_args={**_HERE, "include_dashboard": False})


def lose(place: Path) -> dict[str, Any]:
    from testbed.sweep.hosts import RESOURCE, Hosts

    def begun() -> int:
        file = place / "begun"
        return len(file.read_text()) if file.exists() else 0

    def wait_for(count: int) -> int:
        deadline = time.monotonic() + _WAIT_SECONDS
        while begun() < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return begun()

    orders = [{"folder": f"cells/{number}", "number": number, "place": str(place)} for number in (1, 2)]
    said: list[Any] = []

    def serve() -> None:
        with Hosts(cluster.address) as hosts:
            said.extend([order["number"], messages] for order, messages in hosts.serve(_MODULE, orders, place / "out"))

    cluster = _head()
    first = cluster.add_node(**_HERE, resources={RESOURCE: 1})
    thread = threading.Thread(target=serve)
    thread.start()
    wait_for(1)
    time.sleep(1)
    at_once = begun()
    cluster.remove_node(first, allow_graceful=False)
    cluster.add_node(**_HERE, resources={RESOURCE: 1})
    again = wait_for(at_once + 1)
    (place / "go").touch()
    thread.join(_WAIT_SECONDS)
    return {"said": sorted(said), "at_once": at_once, "again": again, "in_all": begun()}


def refuse() -> dict[str, Any]:
    from testbed.errors import UsageError
    from testbed.sweep.hosts import Hosts

    cluster = _head()
    try:
        with Hosts(cluster.address):
            return {"refused": None}
    except UsageError as error:
        return {"refused": str(error)}


def meet(place: Path, *, stranger: bool) -> dict[str, Any]:
    """A worker whose checkout is a copy, which a stranger has changed by a comment, is told to learn."""
    from testbed.config import Preset, load_toml
    from testbed.config.arms import arm_named
    from testbed.learn.experiment import Cell
    from testbed.learn.pool import order_of
    from testbed.sweep.hosts import RESOURCE, Hosts

    root = Path(__file__).resolve().parents[2]
    for name in ("emulation", "testbed", "experiments"):
        shutil.copytree(root / name, place / "checkout" / name)
    if stranger:
        with (place / "checkout" / "testbed" / "model.py").open("a") as file:
            file.write("# another\n")
    preset = load_toml(Preset, "presets", str(root / "tests" / "runs" / "tiny_preset.toml"))
    cell = Cell(preset_name="tiny", preset=preset, arm=arm_named("control"), seed=0, nodes=2)
    cluster = _head()
    cluster.add_node(**_HERE, resources={RESOURCE: 1}, env_vars={"PYTHONPATH": str(place / "checkout")})
    with Hosts(cluster.address) as hosts:
        served = list(hosts.serve("testbed.learn.worker", [order_of([cell], Path("learned"))], place / "out"))
    return {"said": served[0][1], "files": [path.name for path in (place / "out").rglob("*.json")], "cell": cell.hash}


def main() -> int:
    place, mode = Path(sys.argv[1]), (*sys.argv[2:], "")[0]
    found = lose(place) if not mode else refuse() if mode == "none" else meet(place, stranger=mode == "stranger")
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_in_world(main))
