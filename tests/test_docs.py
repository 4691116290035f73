"""The examples of docs/schedules.md, docs/networks.md and docs/training.md load as they stand there."""

import json
import re
from pathlib import Path

import pytest

from emulation.spec.network import Link, Network, star
from emulation.spec.schedule import load_schedule
from testbed.config import names_in
from testbed.config.arms import arm_named
from testbed.config.training import Train, resolve_training
from testbed.settings.networks import network_from

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLE = re.compile(r"^`([\w-]+\.\w+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: str) -> dict[str, str]:
    """Every code block that stands below its file name."""
    return dict(EXAMPLE.findall((DOCS / page).read_text(encoding="utf-8")))


def network(accounting) -> Network:
    return star(4, Link(rate_bps=100_000_000, rate_down_bps=None, delay_us=10_000), accounting)


@pytest.mark.parametrize("name", examples("schedules.md"))
def test_schedules(name, tmp_path):
    for each, text in examples("schedules.md").items():
        (tmp_path / each).write_text(text)
    schedule = load_schedule(tmp_path / name, network("pair" if name == "pairs.toml" else "nic"))
    assert len(schedule) >= 1
    json.dumps(schedule.describe())


@pytest.mark.parametrize("name", examples("networks.md"))
def test_networks(name, tmp_path):
    (tmp_path / name).write_text(examples("networks.md")[name])
    assert len(network_from(str(tmp_path / name)).nodes) >= 4


def test_training(tmp_path):
    (tmp_path / "training.toml").write_text(examples("training.md")["training.toml"])
    training = resolve_training(Train(config=str(tmp_path / "training.toml"), seed=3))
    assert (training.resolved_arm().exchange, training.resolved_preset().context, training.seed) == ("ring", 512, 3)


@pytest.mark.parametrize("name", names_in("arms"))
def test_arms(name):
    """Every arm in experiments/arms is called as its file."""
    assert arm_named(name).name == name


def test_all_examples_are_found():
    assert set(examples("schedules.md")) == {
        "storm.toml", "pairs.toml", "faults.toml", "walk.csv", "bus.up", "bus.down", "ride.toml",
    }  # fmt: skip
    assert set(examples("networks.md")) == {"clinic.toml", "uneven.toml", "three.toml"}


def test_the_table_of_networks_is_complete():
    table = re.findall(r"^\| `([\w-]+)` \|", (DOCS / "networks.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == names_in("networks")


ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((ROOT / "experiments").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """To a file that is there, and to a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            there = (page.parent / file).resolve() if file else page
            assert there.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}, target


def test_every_page_is_in_the_index():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in index for page in DOCS.glob("*.md") if page.name != "README.md")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 800
