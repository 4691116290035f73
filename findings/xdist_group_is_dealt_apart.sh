#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0: tests of one xdist_group run in several workers under --dist loadgroup.
#
# Expected (pytest-xdist's manual: "sends tests marked with 'xdist_group' to the same worker"): six tests of one group
# run in one worker, as they do with pytest 8.4.2.
# Real: with pytest 9.2.0 they are dealt to all workers, without a warning.
#
# Why trainers over slow links meet it: a suite marks all tests that need the one shaped link, container engine or GPU
# as a group, so that no two of them use it at once. Side by side, each measures the other's traffic as its own.
#
# Seen:
#   pytest 8.4.2: 1 worker
#   pytest 9.2.0: 3 workers
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
mkdir "$folder/suite"
cat >"$folder/suite/test_group.py" <<'PY'
import os
import time

import pytest


@pytest.mark.xdist_group("link")
@pytest.mark.parametrize("number", range(6))
def test_one_of_a_group(number):
    time.sleep(0.2)
    print("worker", os.environ["PYTEST_XDIST_WORKER"])
PY
workers() {
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pytest==$1" "pytest-xdist==3.8.0"
    (cd "$folder/suite" && "$folder/venv/bin/python" -m pytest -n 3 --dist loadgroup -rP -p no:cacheprovider) |
        grep -oE "^worker gw[0-9]+" | sort -u | wc -l
}
before=$(workers 8.4.2)
after=$(workers 9.2.0)
echo "pytest 8.4.2: $before worker"
echo "pytest 9.2.0: $after workers"
test "$before" -eq 1 -a "$after" -gt 1
