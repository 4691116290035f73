"""Recovered fractions and their intervals on numbers whose answers are known; and what says that they mean nothing."""

from dataclasses import replace
from typing import Any

import pytest

from testbed.analysis.quality.figures import data_recovered, figure_recovered
from testbed.analysis.quality.judge import NamedCell, code_of, interval, judge, results_table
from testbed.analysis.quality.pages import markdown, write_quality
from testbed.config.arm import OWN_REPLICAS
from testbed.errors import UsageError
from testbed.records import LearnedCell, Place, QualityRecord, Validation
from tests.analysis.synthetic import made_up

SEEDS = (10, 11, 12)
NOISE = dict(zip(SEEDS, (-0.01, 0.0, 0.01), strict=True))
"""What a seed does to every arm alike: pairing takes it away."""


PLACE = Place(commit="a" * 40, sources_sha256="5" * 64, python="3.11", packages={"torch": "2.13"})


def cell(arm: str, seed: int, remote: float, *, recall: float = 0.5, codec: str = "exact", **changes: Any) -> NamedCell:
    """A cell as it lies on disk, with a loss on remote tokens; it falls from 3 nats in a straight line."""
    loss = remote / 10 + 1.5

    def at(step: int, share: float) -> Validation:
        return Validation(
            step=step,
            val_loss=loss,
            val_loss_text=1.4,
            val_loss_remote=3 + (remote - 3) * share,
            val_loss_local=0.1,
            recall_accuracy_remote=recall,
        )

    weights = {"scope": changes.pop("scope", "all")}
    preset = {"warm_steps": 10, "steps": 100, "batch": 2, "context": 64, "sync_every": 10} | changes.pop("preset", {})
    exchange = "local" if codec == "none" else "all-gather"
    count = {"none": 0, "exact": 512}.get(codec, 18)
    asked = {"exchange": exchange, "split": "sequence", "sync": "gradients", "codec": {"name": codec}}
    learned = LearnedCell(
        cell=f"{arm}-{seed}",
        config={"seed": seed, "preset": preset, "arm": asked | {"weights": weights}},
        asked={},
        content={},
        environment=PLACE,
        corpus_sha256="0",
        warm_sha256="0",
        losses=(),
        rank_losses=[],
        validations=(at(0, 0.0), at(50, 0.5), at(100, 1.0)),
        validation_exact=Validation(step=100, val_loss=loss),
        drift=(),
        bytes_per_token_layer={"forward": count, "backward": count},
        payload_bytes_per_step={"kv_forward": 64 * count, "kv_backward": 64 * count, "other": 9},
        sync_bytes_each=0,
        codec={},
        parameters=1,
        seconds=1.0,
        cpu_seconds=1.0,
    )
    return NamedCell(preset="made-up", arm=arm, cell=replace(learned, **changes))


def cells(*, spread: float = 1.0) -> list[NamedCell]:
    """Exact at 0.1, control at 2.1, a codec that recovers 0.9, 0.8 and 0.7, a null that recovers a fifth."""
    found = []
    for seed, noise in NOISE.items():
        at = noise * spread
        found += [
            cell("decentralised", seed, 0.1 + at, recall=1.0),
            cell("control", seed, 2.1 + at, recall=0.125, codec="none"),
            cell("best", seed, 2.1 - 2 * (0.8 - 10 * noise) + at, recall=0.825, codec="best"),
            cell("random", seed, 1.7 + at, recall=0.3, codec="random+int4"),
        ]
    return found


def answer(found: list[NamedCell], **changes: Any) -> QualityRecord:
    settings: dict[str, Any] = {"title": "Made up", "exact": "decentralised", "control": "control", "asked": len(found)}
    settings |= {"code": code_of(found)} | changes
    return judge(results_table(found), **settings)


def arm(record: QualityRecord, name: str) -> Any:
    return next(each for each in record.presets[0].arms if each.arm == name)


def null_of(record: QualityRecord) -> Any:
    return record.presets[0].null


def test_recovered_fractions_are_paired_over_seeds():
    """The seeds' common noise is gone; the interval is Student's: t(0.975, 2) · 0.1 / √3 = 0.2484."""
    record = answer(cells(spread=0.5))
    assert vars(arm(record, "best").recovered_loss) == {
        "mean": pytest.approx(0.8),
        "half": pytest.approx(0.24842, abs=1e-4),
        "count": 3,
    }
    assert arm(record, "best").recovered_recall.mean == pytest.approx(0.8)
    assert vars(arm(record, "random").recovered_loss) == {
        "mean": pytest.approx(0.2),
        "half": pytest.approx(0),
        "count": 3,
    }
    assert arm(record, "decentralised").recovered_loss.mean == 1
    assert arm(record, "control").recovered_loss.mean == 0
    assert arm(record, "control").val_loss_vs_exact.mean == pytest.approx(0.2 / 1.51, rel=1e-3)


def test_a_task_that_shows_nothing_says_so():
    """Control 0.2 nats above exact: enough over a deviation of 0.001, not over 0.05. Without control: no word."""
    found = answer(cells()).presets[0]
    assert found.shows is True
    assert found.val_loss_apart == pytest.approx(0.2 / 0.001)
    noisy = answer(cells(spread=50))
    assert noisy.presets[0].shows is False
    assert "this task shows nothing" in markdown(noisy)
    assert "this task shows nothing" not in markdown(answer(cells()))
    alone = answer([each for each in cells() if each.arm != "control"])
    assert alone.presets[0].shows is None
    assert arm(alone, "best").recovered_loss is None


def test_only_common_seeds_count():
    """A seed that an arm lacks is left out of its comparison, and an arm with one seed has no interval."""
    record = answer([each for each in cells() if each.arm != "best" or each.cell.config["seed"] == 12])
    assert vars(arm(record, "best").recovered_loss) == {"mean": pytest.approx(0.7), "half": None, "count": 1}
    assert arm(record, "random").recovered_loss.count == 3


def test_other_tokens_are_not_compared():
    """An arm that has read twice as much recovers nothing that can be told."""
    more = [cell("best", seed, 0.1, codec="best", preset={"steps": 210}) for seed in SEEDS]
    record = answer([each for each in cells() if each.arm != "best"] + more)
    assert arm(record, "best").recovered_loss is None
    assert arm(record, "best").val_loss.mean == pytest.approx(1.51)


def test_other_data_are_refused():
    with pytest.raises(UsageError, match="have read different data"):
        results_table([*cells(), cell("late", 10, 1.0, corpus_sha256="1")])


def by(**changes: Any) -> Place:
    """Where a cell was learned, but for this."""
    return replace(PLACE, **changes)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (by(sources_sha256="6" * 64), "1 by sources 666666666 (commit aaaaaaaaa) with PyTorch 2.13"),
        (by(packages={"torch": "2.14"}), "1 by sources 555555555 (commit aaaaaaaaa) with PyTorch 2.14"),
        (by(commit="b" * 40, dirty=True, sources_sha256=None), "1 by commit bbbbbbbbb with changes with"),
        (by(commit=None, sources_sha256=None), "1 by commit unknown with PyTorch 2.13"),
    ],
)
def test_cells_of_more_than_one_state_of_the_code_are_not_passed_over(other, said):
    """Other sources or another torch; the table says how many by which."""
    record = answer([*cells(), cell("late", 10, 1.0, environment=other)])
    assert [state.cells for state in record.code] == [12, 1]
    words = markdown(record)
    assert "**Not all cells were learned by the same code: 12 by sources 555555555 (commit aaaaaaaaa)" in words
    assert said in words


def test_another_commit_of_the_same_sources_is_the_same_code():
    record = answer([*cells(), cell("late", 10, 1.0, environment=by(commit="b" * 40, dirty=True))])
    (state,) = record.code
    assert state.commits == {"aaaaaaaaa": 12, "bbbbbbbbb with changes": 1}
    assert "by the same code" not in markdown(record)


def test_replicas_that_are_not_alike_are_said_to_be_validated_one_by_one():
    """Of an arm whose ranks average attention only, and of no other."""
    assert f"`late`: {OWN_REPLICAS}." in markdown(answer([*cells(), cell("late", 10, 1.0, scope="attention")]))
    assert OWN_REPLICAS not in markdown(answer(cells()))


def test_at_equal_time():
    """Steps of 1, 4 and 2 s, control ends after 100: best has done 50 steps and stands half way down."""
    like = {arm.arm: arm for arm in made_up()[0].arms}
    timed = [
        replace(like["control"], step_seconds_mean=1.0, sync_seconds_per_step=None),
        replace(like["decentralised"], step_seconds_mean=3.5, sync_seconds_per_step=0.5, link="modelled"),
        replace(like["latent"], arm="best", step_seconds_mean=2.0, sync_seconds_per_step=None),
        replace(like["latent"], arm="elsewhere", step_seconds_mean=0.1),
        replace(like["latent"], arm="random", step_seconds_mean=0.1, valid=False),
    ]
    times = replace(made_up()[0], name="a-run", arms=tuple(timed))
    record = answer(cells(spread=0), times=times)
    assert record.presets[0].horizon_seconds == 100
    best, exact = arm(record, "best"), arm(record, "decentralised")
    assert (best.steps_in_time, exact.steps_in_time) == (50, 25)
    assert exact.val_loss_remote_in_time.mean == pytest.approx(3 - 2.9 / 4)
    assert best.recovered_in_time.mean == pytest.approx((2.1 - (3 + 0.5) / 2) / 2)
    assert exact.step_seconds_kind == "modelled"
    assert arm(record, "random").recovered_in_time is None
    assert "| `decentralised` | 4.00 (modelled) | 25.0 |" in markdown(record)


@pytest.mark.parametrize(("values", "half"), [([1.0, 3.0], 12.706), ([0.0] * 5, 0.0), ([1.0], None)])
def test_interval(values, half):
    """Two values 2 apart: s/√n is 1, and t(0.975, 1) 12.706."""
    found = interval(values)
    assert found is not None
    assert found.half == (None if half is None else pytest.approx(half, abs=1e-3))
    assert interval([]) is None


def test_everything_is_written(tmp_path):
    """Tables and a figure; the same data give the same bytes."""
    for folder in ("one", "other"):
        write_quality(answer(cells()), results_table(cells()), tmp_path / folder)
    names = {path.name for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert names == {
        *("quality.json", "quality.md", "results.parquet", "results.csv"),
        *("recovered.csv", "recovered.svg", "recovered.png"),
    }
    for name in ("quality.md", "quality.json", "results.csv", "figures/recovered.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_the_figure_tells_codecs_nulls_and_no_exchange_apart():
    table = data_recovered(answer(cells())).set_index("arm")
    assert table["kind"].to_dict() == {"decentralised": "exact", "control": "none", "best": "codec", "random": "null"}
    labels = {text.get_text() for text in figure_recovered(answer(cells())).axes[0].texts}
    assert {"best", "random"} <= labels
    assert not {"control", "decentralised"} & labels  # of which the legend speaks


def with_null(at: float, spread: float = 0.0) -> list[NamedCell]:
    """The cells, and a null at this remote loss in the mean over seeds."""
    return [*cells(spread=0.5), *(cell("ids", seed, at + spread * NOISE[seed], codec="int8") for seed in SEEDS)]


def test_what_is_recovered_beyond_nulls():
    """The null at 1.7 leaves 1.6 of 2 nats: (1.7 − 0.5) / 1.6 in the mean, and the interval of the pairs."""
    record = answer(with_null(1.9), nulls=["random", "ids"], margin=0.01)
    null = null_of(record)
    assert (null.arm, null.counts) == ("random", True)
    assert null.gap.mean == pytest.approx(1.6)
    assert null.share == pytest.approx(0.8)
    beyond = arm(record, "best").recovered_beyond_nulls
    assert beyond.mean == pytest.approx(0.75)
    assert beyond.half == pytest.approx(0.24842 * 2 / 1.6, abs=1e-4)
    assert arm(record, "decentralised").recovered_beyond_nulls.mean == pytest.approx(1)
    assert arm(record, "random").recovered_beyond_nulls.mean == pytest.approx(0)
    assert "**This task counts.**" in markdown(record)


@pytest.mark.parametrize(
    ("at", "spread", "counts"), [(0.1, 0, False), (1.09, 0, False), (1.2, 0, True), (1.2, 5, False)]
)
def test_a_task_that_a_null_solves_does_not_count(at, spread, counts):
    """Where the best null leaves half or less, at the lower end of its interval, nothing is recovered beyond it."""
    record = answer(with_null(at, spread), nulls=["ids"], margin=0.01)
    assert null_of(record).counts is counts
    assert (arm(record, "best").recovered_beyond_nulls is None) is not counts
    assert ("does not ask for what a codec compresses" in markdown(record)) is not counts


def test_one_seed_cannot_tell_whether_a_task_counts():
    record = answer([each for each in with_null(1.9) if each.cell.config["seed"] == 10], nulls=["ids"], margin=0.01)
    assert null_of(record).counts is None
    assert arm(record, "best").parity is None
    assert "cannot be told yet: it takes two seeds" in markdown(record)


def test_parity_is_an_equivalence_within_a_margin():
    """An arm that differs by noise alone is at parity within the margin, and not within a smaller one; one that is
    better in the mean but scattered is not."""
    near = [cell("near", seed, 0.1 + 0.5 * NOISE[seed] + 0.02, codec="best") for seed in SEEDS]
    loose = [cell("loose", seed, 0.12 + 0.5 * NOISE[seed] + 2 * NOISE[seed], codec="best") for seed in SEEDS]
    wide = [cell("wide", seed, 0.1 + 30 * NOISE[seed], codec="best") for seed in SEEDS]
    found = [*with_null(1.9), *near, *loose, *wide]
    assert arm(answer(found, nulls=["ids"], margin=0.01), "near").parity is True
    assert arm(answer(found, nulls=["ids"], margin=0.001), "near").parity is False
    assert arm(answer(found, nulls=["ids"], margin=0.01), "loose").parity is True
    assert arm(answer(found, nulls=["ids"], margin=0.003), "loose").parity is False  # though it is in the mean
    assert arm(answer(found, nulls=["ids"], margin=0.01), "wide").parity is False
    assert arm(answer(found, nulls=["ids"], margin=0.01), "best").parity is False
    assert arm(answer(cells()), "best").parity is None


def test_every_null_must_fail_in_every_seed():
    """One that solves the task with one seed of three, as what is learned suddenly is; one that is not there yet; one
    of other steps; and exchange that is worth nothing: no verdict, or against the task."""
    nulls = ["ids", "random"]
    lucky = [*cells(spread=0.5), *(cell("ids", seed, 0.1 if seed == 11 else 2.1, codec="int8") for seed in SEEDS)]
    assert null_of(answer(lucky, nulls=nulls, margin=0.01)).counts is False
    missing = answer(cells(spread=0.5), nulls=nulls, margin=0.01)
    assert null_of(missing).counts is None
    assert arm(missing, "best").parity is None
    assert "`ids` not learned" in markdown(missing)
    longer = [*cells(), *(cell("ids", seed, 0.1, codec="int8", preset={"steps": 210}) for seed in SEEDS)]
    assert null_of(answer(longer, nulls=nulls, margin=0.01)).missing == ("ids",)
    worthless = [
        cell(name, seed, at + NOISE[seed], codec=codec)
        for seed in SEEDS
        for name, at, codec in (("decentralised", 1.4, "exact"), ("control", 1.3, "none"), ("ids", 1.38, "int8"))
    ]
    assert null_of(answer(worthless, nulls=["ids"], margin=0.01)).counts is False
