"""A Ray of a head and workers, in a world whose only network is its own loopback: what two orders came to.

The first worker dies when it has begun; another comes, and does it all. `python -m tests.sweep.lost_host FOLDER` prints
what was said of the orders, and how many had begun at each moment. `… FOLDER none`: there is no worker for us.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from emulation.world import run_in_world

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


def main() -> int:
    found = refuse() if sys.argv[2:] else lose(Path(sys.argv[1]))
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_in_world(main))
