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
    """What the Dockerfile is built from, with wheels, so that the engine fetches nothing; and its base."""
    make_base()
    tried = ["docker", "run", "--rm", "--network", "none", BASE, "python3", "-c", "pass"]
    if (done := subprocess.run(tried, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"the engine runs no container here: {done.stderr.strip()}")
    context = tmp_path_factory.mktemp("context")
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(ROOT / name, context)
    for name in ("emulation", "testbed", "experiments"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheels = [sys.executable, "-m", "pip", "download", "-q", "-c", "constraints.txt", "-d", "wheels", ".", "setuptools"]
    subprocess.run(wheels, cwd=context, check=True)
    yield context
    subprocess.run(["docker", "rmi", "-f", IMAGE, f"{IMAGE}-shaper", BASE], capture_output=True, check=False)


def build(context: Path, tag: str, *options: str) -> str:
    arguments = [
        f"--build-arg={each}"
        for each in (f"BASE_IMAGE={BASE}", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheels", "PIP_EXTRA_INDEX_URL=")
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
