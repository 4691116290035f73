"""The report in a real browser: from a file, without a network, in two sizes and two lights."""

import re
from dataclasses import replace

import pytest
from PIL import Image

from testbed.analysis.comparison.load import write_results
from testbed.analysis.report import write_report
from testbed.analysis.sweep.results import conclude
from testbed.errors import UsageError
from testbed.records import write_json
from tests.analysis.made_up_sweep import made_up_sweep
from tests.analysis.synthetic import made_up, with_arm
from tests.browser import Browser, needs_browser

NASTY = "<script>console.error('run')</script><img src=x onerror=alert(1)>"


def comparison_folder(folder, name="a run", arm=NASTY):
    """A finished comparison, one arm of which has, unless told otherwise, a name that is a script."""
    comparison, summaries = made_up()
    comparison = with_arm(replace(comparison, name=name), "latent", arm=arm)
    summaries[arm] = replace(summaries.pop("latent"), arm=arm)
    write_results(folder, comparison, summaries)
    write_json(folder / "comparison.json", comparison)
    return folder


def sweep_folder(folder):
    """A finished sweep with a failed cell."""
    made_up_sweep(folder, failed=[("subspace", 1e9)])
    conclude(folder, {"subspace-1e+09-0": "no such link <b>at all</b>", "subspace-1e+09-0.02": "neither"})
    (folder / "command.txt").write_text("testbed sweep grid.toml\n")
    return folder


@needs_browser
@pytest.mark.parametrize("make", [comparison_folder, sweep_folder])
def test_it_opens_from_a_file_and_shows_everything(tmp_path, make):
    """No complaint, nothing fetched, figures visible, nothing wider than the window at 400 and 1400 pixels."""
    folder = tmp_path / "run"
    folder.mkdir()
    report = write_report(make(folder))
    with Browser(tmp_path / "profile") as browser:
        for width in (400, 1400):
            browser.show(width)
            browser.open(report)
            assert browser.ask("document.documentElement.scrollWidth") <= width
            sizes = browser.ask(
                "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width)"
            )
            assert len(sizes) >= 5
            assert min(sizes) > 350
            assert browser.ask("parseFloat(getComputedStyle(document.body).fontSize)") >= 14
        titles = browser.ask("document.querySelectorAll('figure svg .says > title').length")
        assert titles > 0
        ids = browser.ask("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        assert browser.complaints == []
        assert [url for url in browser.fetched if not url.startswith(("file:", "data:"))] == []
        assert browser.ask("document.querySelectorAll('script, img, link').length") == 0


@needs_browser
@pytest.mark.parametrize("make", [lambda folder: comparison_folder(folder, arm="latent"), sweep_folder])
def test_tables_are_read_without_moving_them(tmp_path, make):
    """On a desk; on a telephone they are moved, within the page. Figures' numbers are folded away, and wider."""
    folder = tmp_path / "run"
    folder.mkdir()
    report = write_report(make(folder))
    cut = {}
    with Browser(tmp_path / "profile") as browser:
        for width in (400, 1200):
            browser.show(width)
            browser.open(report)
            cut[width] = browser.ask(
                "[...document.querySelectorAll('h2 ~ .wide')].filter(e => e.scrollWidth > e.clientWidth).length"
            )
    assert cut[400] > 0
    assert cut[1200] == 0


@needs_browser
def test_light_and_dark(tmp_path):
    """The page and its figures change with the reader's light."""
    folder = tmp_path / "run"
    folder.mkdir()
    report = write_report(sweep_folder(folder))
    brightness = {}
    with Browser(tmp_path / "profile") as browser:
        for dark in (False, True):
            browser.show(1000, dark=dark)
            browser.open(report)
            browser.picture(tmp_path / "page.png")
            with Image.open(tmp_path / "page.png") as picture:
                brightness[dark] = sum(picture.convert("L").histogram()[:64]) / (picture.width * picture.height)
    assert brightness[False] < 0.2
    assert brightness[True] > 0.6


@needs_browser
def test_a_page_that_complains_is_noticed(tmp_path):
    """Negative control of the test above: a console error, an image from elsewhere, a wide element."""
    (tmp_path / "bad.html").write_text(
        "<script>console.error('no')</script><img src='https://example.invalid/x.png'><div style='width:3000px'>x</div>"
    )
    with Browser(tmp_path / "profile") as browser:
        browser.show(400)
        browser.open(tmp_path / "bad.html")
        assert browser.complaints
        assert any("example.invalid" in url for url in browser.fetched)
        assert browser.ask("document.documentElement.scrollWidth") > 400


def test_what_a_user_names_is_text(tmp_path):
    """Nowhere a tag of theirs; the name itself is there to be read."""
    text = write_report(comparison_folder(tmp_path, name=NASTY)).read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_it_says_what_failed_and_how_to_repeat_it(tmp_path):
    """With the reason, escaped, and the command."""
    text = re.sub(r"\s+", " ", write_report(sweep_folder(tmp_path)).read_text())
    assert "no such link &lt;b&gt;at all&lt;/b&gt;" in text
    assert "2 cells failed" in text
    assert "testbed sweep grid.toml" in text


def test_what_is_no_run_is_refused(tmp_path):
    """In a sentence."""
    with pytest.raises(UsageError, match="is no run"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds neither"):
        write_report(tmp_path)


def test_a_report_is_small_and_folds_its_long_tables(tmp_path):
    """Figures as drawings take a hundred kilobytes each; how many links were measured stands where they are folded."""
    report = write_report(comparison_folder(tmp_path, arm="latent"))
    assert report.stat().st_size < 800_000
    assert "12 links × 2 loads × 2 phases, the worst 0." in report.read_text()


@pytest.mark.parametrize("text", ["", "[]"])
def test_a_damaged_environment_is_one_sentence(tmp_path, text):
    (sweep_folder(tmp_path) / "environment.json").write_text(text)
    with pytest.raises(UsageError, match=r"environment\.json is "):
        write_report(tmp_path)
