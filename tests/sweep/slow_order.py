"""An order that waits: it says that it has begun, and ends when it is told to (tests/sweep/test_hosts.py)."""

import json
import sys
import time
from pathlib import Path

_MOST_SECONDS = 120

if __name__ == "__main__":
    order = json.loads(sys.stdin.readline())
    place = Path(order["place"])
    with (place / "begun").open("a") as begun:
        begun.write("x")
    deadline = time.monotonic() + _MOST_SECONDS
    while not (place / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    folder = Path(order["folder"])
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"answer": order["number"]}))
    print(json.dumps({"done": order["number"]}), flush=True)
