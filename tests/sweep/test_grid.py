"""What stands in a sweep's file: its points, what is left out, and what is refused."""

from datetime import date, time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.config import EXPERIMENTS, parse
from testbed.config.tree import read_toml
from testbed.errors import UsageError
from testbed.sweep import user_commands as commands
from testbed.sweep.cells import cells_of, checks_of
from testbed.sweep.grid import Grid, points_of
from testbed.sweep.plan import by, nodes_of, point_of

ARMS = {"title": "t", "arms": ["decentralised", "control"], "seeds": [0]}


def sweep(**tables):
    return parse(Grid, {**ARMS, **tables}, "grid.toml")


def test_every_value_meets_every_other():
    """In the order of the file, the last key fastest; settings are of every point."""
    points, excluded = points_of(
        sweep(settings={"preset": "quick"}, grid={"bw": ["30mbit", "1gbit"], "delay": ["0ms", "5ms"]})
    )
    assert points == [
        {"preset": "quick", "bw": bw, "delay": delay} for bw in ("30mbit", "1gbit") for delay in ("0ms", "5ms")
    ]
    assert excluded == []


def test_lists_that_go_together_are_one_axis():
    """And dotted keys may be written as tables or quoted."""
    points, _ = points_of(
        sweep(
            grid={"bw": ["1gbit"]},
            together=[{"nodes": [2, 4], "preset": {"batch": [2, 4]}, "arm.overlap": [True, False]}],
        )
    )
    assert points == [
        {"bw": "1gbit", "nodes": 2, "preset.batch": 2, "arm.overlap": True},
        {"bw": "1gbit", "nodes": 4, "preset.batch": 4, "arm.overlap": False},
    ]


def test_what_is_left_out_keeps_its_reason():
    """One value, or a list of them; all keys of an exclusion must hold."""
    points, excluded = points_of(
        sweep(
            grid={"bw": ["30mbit", "1gbit"], "delay": ["0ms", "5ms", "20ms"]},
            exclude=[{"bw": "30mbit", "delay": ["5ms", "20ms"], "reason": "minutes a step"}],
        )
    )
    assert [(each.point["delay"], each.reason) for each in excluded] == [
        ("5ms", "minutes a step"),
        ("20ms", "minutes a step"),
    ]
    assert len(points) == 4


def test_values_that_are_lists_are_values():
    """Of ranks, say."""
    tables = {"grid": {"preset.subspace_ranks": [[3, 6], [12, 24]]}}
    assert [point["preset.subspace_ranks"] for point in points_of(sweep(**tables))[0]] == [[3, 6], [12, 24]]
    one = sweep(**tables, exclude=[{"preset": {"subspace_ranks": [3, 6]}, "reason": "known"}])
    assert [point["preset.subspace_ranks"] for point in points_of(one)[0]] == [[12, 24]]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_grid_has_as_many_points_as_its_lengths_say(lengths):
    """The product, all of them different."""
    keys = ("loss_burst", "mtu", "nodes", "steps")
    grid = {key: list(range(1, length + 1)) for key, length in zip(keys, lengths, strict=False)}
    points, _ = points_of(sweep(grid=grid))
    product = 1
    for length in lengths:
        product *= length
    assert len(points) == product == len({tuple(point.items()) for point in points})


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"grid": {"bandwith": ["1gbit"]}}, "unknown key 'bandwith'"),
        ({"grid": {"dealy": ["1ms"]}}, "did you mean 'delay'?"),
        ({"grid": {"preset.sync_evry": [1]}}, "did you mean 'preset.sync_every'?"),
        ({"settings": {"lay": 1}}, "unknown key 'lay'"),
        ({"gird": {"bw": ["1gbit"]}}, "unknown key 'gird'; did you mean 'grid'?"),
        ({"grid": {"bw": []}}, "'bw' is an empty list"),
        ({"grid": {"bw": "1gbit"}}, "a grid needs a list of values"),
        ({"grid": {"bw": ["1gbit", "1gbit"]}}, "one of them stands there twice"),
        ({"grid": {"bw": ["1gbit"]}, "together": [{"bw": ["1gbit"]}]}, "'bw' is varied twice"),
        ({"together": [{"bw": ["1gbit"], "delay": ["0ms", "5ms"]}]}, "its lists have [1, 2] values"),
        ({"grid": {"mtu": list(range(1000, 2000)), "nodes": list(range(10_000))}}, "10,000,000 points"),
        ({"grid": {"bw": ["1gbit"]}, "exclude": [{"bw": "1gbit"}]}, "say why"),
        ({"grid": {"bw": ["1gbit"]}, "exclude": [{"bw": "1gbit", "reason": "x"}]}, "nothing is left to run"),
        ({"grid": {"bw": ["1gbit"]}, "exclude": [{"delay": "0ms", "reason": "x"}]}, "'delay' is not varied"),
        ({"grid": {"bw": ["1gbit"]}, "exclude": [{"bw": "2gbit", "reason": "x"}]}, "is none of its values"),
        ({"grid": {"bw": ["1gbit"]}, "exclude": [{"reason": "x"}]}, "excludes everything"),
        ({"grid": {"target.wire_bytes": [2, float("nan")]}}, "nan is no finite number; if it is meant as a word"),
        ({"settings": {"bw": date(2026, 1, 1)}}, "2026-01-01 is a date, which is no value here: put it in quotes"),
        ({"grid": {"bw": [time(12, 30)]}}, "12:30:00 is a time, which is no value here: put it in quotes"),
        ({"check": [{"arm": "control", "bw": [[date(2026, 1, 1)]]}]}, "2026-01-01 is a date"),
        ({"arms": []}, "arms is empty"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 1]}, "stands there twice"),
        ({"seeds": [-1]}, "whole numbers from 0"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(tables, said):
    """With what was given, and the nearest key there is."""
    with pytest.raises(UsageError) as error:
        points_of(sweep(**tables))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


CHECKED = {"arms": ["decentralised", "subspace", "control"], "seeds": [0, 1], "grid": {"bw": ["30mbit", "1gbit"]}}


def checks(*given, full=False, **tables):
    asked = sweep(**{**CHECKED, "check": list(given), **tables})
    found = checks_of(asked, cells_of(asked, Path("runs/x"), "testbed sweep"), full=full)
    return [(each.words, each.settings.nodes) for each in found]


def test_one_cell_is_checked_unless_the_file_says_which():
    """A compressed arm's, on the fastest link that a small machine carries, on all nodes that learn."""
    assert checks() == [("subspace at bw 30mbit, 50 steps with seed 0", 4)]
    assert checks(timed_nodes=2) == checks()
    named = checks({"arm": "control", "bw": "1gbit", "steps": 7, "seed": 1}, {"arm": "decentralised"})
    assert [words for words, _ in named] == [
        "control at bw 1gbit, 7 steps with seed 1",
        "decentralised at bw 30mbit, 50 steps with seed 0",
    ]


def test_in_full_all_cells_are_trained_to_their_end():
    """Every seed of every cell."""
    found = [words for words, _ in checks(full=True)]
    assert len(found) == 3 * 2 * 2
    assert found[-1] == "control at bw 1gbit, 250 steps with seed 1"


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"bw": "1gbit"}, "name an arm"),
        ({"arm": "contrl"}, "no cell is arm contrl"),
        ({"arm": "control", "bw": "2gbit"}, "none of its values"),
        ({"arm": "control", "delay": "0ms"}, "is not varied"),
        ({"arm": "control", "steps": 0}, "a whole number from 1 on"),
        ({"arm": "control", "steps": 1000}, "its preset has 250"),
        ({"arm": "control", "seed": 5}, "none of"),
    ],
)
def test_a_check_of_nothing_is_refused(check, said):
    """With what it could be."""
    with pytest.raises(UsageError, match=said):
        checks(check)


def test_a_time_is_of_all_that_decides_it_and_of_no_name():
    """Another seed, rate or backend is another time; an arm that is called otherwise has the same."""

    def timed(seed=0, **settings):
        arms = ["decentralised", {"name": "otherwise", "like": "decentralised"}, "control"]
        asked = sweep(arms=arms, seeds=[seed], settings={"bw": "30mbit", **settings})
        return [cell.config for cell in cells_of(asked, Path("runs/x"), "testbed sweep")]

    first, same, control = timed()
    assert first == same != control
    for other in (timed(seed=1), timed(bw="40mbit"), timed(backend="host"), timed(preset={"batch": 8})):
        assert first != other[0]


@pytest.mark.parametrize(
    ("grid", "groups"),
    [
        ({"bw": ["30mbit", "40mbit"]}, 1),  # the cluster's link is one at all points
        ({"target.fast_rate": ["1gbit", "100gbit"]}, 2),
        ({"arm.overlap": [True, False]}, 2),
    ],
)
def test_what_is_on_the_clusters_link_is_timed_with_what_is_alike(grid, groups):
    """Cells of one group are timed with the first one's settings: another target is another group."""
    cells = cells_of(
        sweep(arms=["centralised", "decentralised", "control"], settings={"bw": "30mbit"}, grid=grid),
        Path("runs/x"),
        "testbed sweep",
    )
    fast = {cell.hash: cell for cell in cells if cell.arm.link == "fast"}.values()
    found = by(list(fast), point_of)
    assert len(found) == groups
    assert all(len({str(cell.asked["target"]) for cell in group}) == 1 for group in found.values())
    assert all(len({cell.arm.name for cell in group}) == len(group) for group in found.values())


def test_images_have_nodes_of_their_own(monkeypatch):
    """Containers of one image do not stand for another's."""
    monkeypatch.setattr("testbed.sweep.cells.image_digest", str)
    cells = cells_of(
        sweep(settings={"bw": "30mbit", "backend": "docker"}, grid={"image": ["a", "b"]}),
        Path("runs/x"),
        "testbed sweep",
    )
    assert len(by(cells, nodes_of)) == 2


@pytest.mark.parametrize("word", ["{}", "--config={}", "exec python {} 3"])
def test_a_file_that_a_command_names_is_known_by_its_content(tmp_path, word):
    """Alone, behind a flag, within a line for a shell; another text is another cell, and an empty word is none."""
    file = tmp_path / "cfg.toml"

    def key(text):
        file.write_text(text)
        command = ["sh", "-c", word.format(file), ""]
        asked = parse(Grid, {"title": "t", "seeds": [0], "command": command, "settings": {"bw": "30mbit"}}, "grid.toml")
        return commands.command_cells_of(asked)[0].hash

    assert key("a = 1") == key("a = 1") != key("a = 2")


def test_a_command_in_containers_is_known_by_its_image(monkeypatch):
    """Built anew under the same name it is another one."""
    settings = {"bw": "30mbit", "backend": "docker"}
    asked = parse(Grid, {"title": "t", "seeds": [0], "command": ["true"], "settings": settings}, "grid.toml")
    keys = []
    for digest in ("a", "a", "b"):
        monkeypatch.setattr(commands, "image_digest", lambda _, digest=digest: digest)
        keys.append(commands.command_cells_of(asked)[0].hash)
    assert keys[0] == keys[1] != keys[2]


SWEEPS = [path for path in sorted(EXPERIMENTS.glob("*.toml")) if "[grid]" in path.read_text()]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_that_are_shipped_can_be_run(path):
    """Every point of each is one that the testbed knows."""
    asked = read_toml(Grid, path)
    assert checks_of(asked, cells_of(asked, Path("runs/x"), "testbed sweep"), full=False)


def test_every_question_has_its_page_and_stands_in_the_list():
    """A file, a page of its name, a line in the index; corpora that wait to be fetched, and the same across more nodes,
    share the page of their twin."""
    index = (EXPERIMENTS / "README.md").read_text()
    for path in EXPERIMENTS.glob("*.toml"):
        stem = path.stem.removesuffix("_corpora").removesuffix("_across")
        assert f"({stem}.md)" in index
        page = (EXPERIMENTS / f"{stem}.md").read_text()
        assert all(word in page for word in ("**Question.**", "**What to expect, and why.**", "**Result.**")), stem


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ('n0: {"loss": 1.5}\n', {"loss": 1.5}),
        ('n0: \r 50%|#####     | 5/10{"loss": 1}\n', {"loss": 1}),
        ('n0: the result: {"loss": 1}\n', {}),
        ('n0: \r 50%|#####     | 5/10\r{"loss": 3.5}\n', {"loss": 3.5}),
        ('n0: \x1b[32m10/10\x1b[0m\r\x1b[K{"loss": 3.5}\r\n', {"loss": 3.5}),
        ('n0: {"text": "line\u2028two", "tail": "\\ud83d"}\n', {"text": "line\u2028two", "tail": "?"}),
        (f'n0: {{"long": {"9" * 5000}}}\n', {"long": "9" * 5000}),
        (f"n0: {'{' * 5000}{'}' * 5000}\n", {}),
        ('n0: {"list": [1], "none": null, "yes": true}\n', {"yes": True}),
        ('{"loss": 1.5}\n', {}),
    ],
)
def test_what_a_program_says_is_found(tmp_path, printed, found):
    """On a line of its own, behind a progress bar, whatever stands in it; nothing ends the sweep."""
    (tmp_path / "output.log").write_bytes(printed.encode())
    assert dict(commands._said(tmp_path / "output.log")) == found
