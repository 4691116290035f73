#!/usr/bin/env bash
# pytest 9.2.0: an option of a suite's own conftest.py works while the file that it names is missing, and is unknown once
# the file exists.
#
# Expected: `pytest --resume done.jsonl`, with `testpaths = tests` and the option added in tests/conftest.py, means the
# same whether done.jsonl is there or not; at the worst it is refused both times.
# Real: before conftest.py is read, the value of an option that is not known yet counts as a path of tests. Missing, it is
# passed over, testpaths hold, and tests/conftest.py adds the option. Present, it replaces testpaths, tests/conftest.py
# is not read, and pytest ends with status 4. Written --resume=done.jsonl it works both times.
#
# Why trainers over slow links meet it: a suite of hours that measures links keeps a file of what has passed. The first
# run, which makes the file, works; the one that should go on after an interruption is refused.
#
# Seen:
#   no file yet, apart: 0
#   file there, apart: 4
#   file there, with an equals sign: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pytest==9.2.0"
mkdir -p "$folder/suite/tests"
cd "$folder/suite"
printf '[pytest]\ntestpaths = tests\n' >pytest.ini
printf 'def pytest_addoption(parser):\n    parser.addoption("--resume")\n' >tests/conftest.py
printf 'def test_passes():\n    pass\n' >tests/test_it.py
status() {
    local found=0
    "$folder/venv/bin/python" -m pytest -q -p no:cacheprovider "$@" >/dev/null 2>&1 || found=$?
    echo "$found"
}
missing=$(status --resume done.jsonl)
touch done.jsonl
apart=$(status --resume done.jsonl)
together=$(status --resume=done.jsonl)
echo "no file yet, apart: $missing"
echo "file there, apart: $apart"
echo "file there, with an equals sign: $together"
test "$missing" -eq 0 -a "$apart" -eq 4 -a "$together" -eq 0
