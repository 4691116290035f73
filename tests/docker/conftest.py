"""An engine for the tests: the one that is here, else one of their own; the testbed's image on it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.own_engine import BASE, OwnEngine, make_base

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "slowlink-testbed-test"
"""Not the user's own, which may be on the same engine."""
CLEAN_STAGE = "FROM ${BASE_IMAGE} AS node\nCOPY --from=build /opt/testbed /opt/testbed\n"
"""Of the Dockerfile, what these tests leave out: to copy a gigabyte of packages once more, which only makes an image
smaller. test_an_image_is_built_from_a_bare_python builds it whole."""

SHORT = {
    "DockerBackend": {
        "a_dead_relay_lets_nothing_pass",
        "a_fault_that_is_changed_behind_our_back_is_found",
        "a_wrong_link_is_found",
        "counters_work_from_inside_a_node_and_across_reshaping",
        "the_kernel_has_what_was_asked_for_also_after_reshaping",
    },
    "SidecarBackend": {
        "a_broken_delay_line_is_found",
        "a_delay_changes_in_place_and_goes_again",
        "a_fault_that_is_changed_behind_our_back_is_found",
        "a_network_that_is_wrong_is_found",
        "a_relay_beside_that_stops_is_found",
        "a_wrong_delay_is_found",
        "a_wrong_link_is_found",
        "counters_work_from_inside_a_node_and_across_reshaping",
        "every_second_carries_what_the_trace_has",
        "every_segments_header_is_counted",
        "partitions_and_links_down_decide_who_reaches_whom",
        "rates_that_are_not_what_was_asked_for_end_playing",
        "the_kernel_has_what_was_asked_for_also_after_reshaping",
        "with_eth0_down_no_byte_reaches_a_peer",
    },
}
"""Of test_acceptance.py, what `make test` runs, each with its first parameters; `make acceptance` runs the rest."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the rest."""
    seen = set()
    for item in items:
        if item.nodeid.startswith("tests/docker/test_acceptance.py") and isinstance(item, pytest.Function):
            backend, name = str(item.callspec.params["world"]), item.originalname.removeprefix("test_")
            if name not in SHORT[backend] or (backend, name) in seen:
                item.add_marker(pytest.mark.acceptance)
            seen.add((backend, name))


def missing() -> str | None:
    """Why there can be no engine, if so."""
    if os.geteuid() != 0:
        return "an engine of the tests' own, and shaping its containers, takes root"
    if shutil.which("docker") is None:
        return "no docker client: 'sudo apt-get install docker.io'"
    if not answers() and shutil.which("dockerd") is None:
        return "no engine is running and dockerd is not installed: 'sudo apt-get install docker.io'"
    return None


def answers() -> bool:
    return subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def engine():
    """One that answers."""
    if why := missing():
        pytest.skip(why)
    if answers():
        yield
        return
    try:
        own = OwnEngine().start()
    except RuntimeError as error:
        pytest.skip(f"{error}")
    with own:
        yield


@pytest.fixture(scope="session")
def context(engine, tmp_path_factory):
    """What the Dockerfile is built from, so that the engine fetches nothing; and its base, which has the packages."""
    make_base(BASE, packages=True)
    tried = ["docker", "run", "--rm", "--network", "none", BASE, "python3", "-c", "pass"]
    if (done := subprocess.run(tried, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"the engine runs no container here: {done.stderr.strip()}")
    filled = fill(tmp_path_factory.mktemp("context"), "setuptools")
    dockerfile = filled / "Dockerfile"
    text = dockerfile.read_text()
    assert text.count(CLEAN_STAGE) == 1
    dockerfile.write_text(text.replace(CLEAN_STAGE, "FROM build AS node\n"))
    yield filled
    subprocess.run(["docker", "rmi", "-f", IMAGE, f"{IMAGE}-shaper", BASE], capture_output=True, check=False)


def fill(context: Path, *wheels: str) -> Path:
    """The folder, with the sources and these wheels."""
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(ROOT / name, context)
    for name in ("emulation", "testbed", "experiments"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "download", "-q", "-c", "constraints.txt", "-d", "wheels"]
    subprocess.run([*pip, *wheels], cwd=context, check=True)
    return context


def build(context: Path, tag: str, *options: str, base: str = BASE) -> str:
    """An image of these sources; its name."""
    arguments = [
        f"--build-arg={each}"
        for each in (f"BASE_IMAGE={base}", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheels", "PIP_EXTRA_INDEX_URL=")
    ]
    done = subprocess.run(
        ["docker", "build", "-q", "-t", tag, *arguments, *options, "--network", "none", "."],
        cwd=context,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tag


@pytest.fixture(scope="session")
def image(context):
    """A node's."""
    return build(context, IMAGE)


@pytest.fixture(scope="session")
def shaper_image(context, image):
    """A shaper's, beside a node's."""
    return build(context, f"{IMAGE}-shaper", "--target", "shaper")
