"""Trials of a recipe: what they are made of, that they see no test target, and what their table shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dti_pipeline import artifacts
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import interactions, metrics
from dti_pipeline.evaluation.floors import FLOORS, floors
from dti_pipeline.paths import Paths
from experiments import analyse, write
from experiments import grid as grids
from experiments.grid import Grid
from experiments.logs import rehearse

LENGTHS = [10, 20, 7]
TRIALS = {"name": "trials", "data_sets": ["past"], "paradigms": ["dti"], "measure": "validation"}


def written(folder: Path, group: dict[str, Any] | None = None, rehearsal: dict[str, Any] | None = None) -> Grid:
    """A study of one log and a rehearsal of it, with one group of trials."""
    log = {"events": {"source": "synthetic"}, "split": {"rule": "user_order", "min_history": 2}}
    content = {
        "data_sets": {
            "demo": {"params": log},
            "clock": {"params": {"events": {"source": "synthetic"}}},
            "last": {"params": log | {"split": {"validation_share": 0}}},
            "past": {"rehearsal": {"of": "demo", "train": 0.6}, **(rehearsal or {})},
        },
        "models": {"eps4": {"training": {"adam_epsilon": 1e-4}}},
        "groups": [TRIALS | (group or {})],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return grids.load(folder / "study.yaml")


def events(at: Paths) -> list[dict[str, Any]]:
    """Publish a small log, each history cut at 80 and 90 %; return its rows."""
    found = [
        {"user_id": f"u{user}", "item_id": str(i % 6), "timestamp": None, "label": (i + user) % 2,
         "position": i, "request": i, "known": i,
         "split": "train" if i / n < 0.8 else "validation" if i / n < 0.9 else "test"}
        for user, n in enumerate(LENGTHS) for i in range(n)
    ]  # fmt: skip
    with artifacts.publish(at.events, "ingest", {"split": {"rule": "user_order"}}) as draft:
        pq.write_table(pa.Table.from_pylist(found), draft.path / "interactions.parquet")
    return found


def test_a_rehearsal_trains_on_the_past_judges_the_same_targets_and_holds_no_test_row(tmp_path: Path) -> None:
    log, past = Paths(tmp_path / "log"), Paths(tmp_path / "past")
    by_place = {(row["user_id"], row["position"]): row for row in events(log)}
    rehearse(log, past, 0.6)
    found = pq.read_table(past.events / "interactions.parquet").to_pylist()
    assert {(row["user_id"], row["position"]) for row in found} == {
        place for place, row in by_place.items() if row["split"] != "test"
    }
    for row in found:
        before = by_place[row["user_id"], row["position"]]
        n = LENGTHS[int(row["user_id"][1:])]
        assert (row["split"] == "validation") == (before["split"] == "validation")
        assert (row["split"] == "train") == (row["position"] / n < 0.6)
        assert {**row, "split": ""} == {**before, "split": ""}


def test_a_rehearsal_has_its_log_s_split_and_a_recipe_of_its_own(tmp_path: Path) -> None:
    grid = written(tmp_path, rehearsal={"params": {"training": {"epochs": 5}}})
    assert grid.config("past").split == grid.config("demo").split
    assert grid.config("past").training.epochs == 5
    assert grid.config("demo").training.epochs == 2


def test_how_a_rehearsal_is_made_and_a_free_parameter_make_other_runs(tmp_path: Path) -> None:
    plain, changed = written(tmp_path, {"models": ["", "eps4"]}).runs
    (shorter,) = written(tmp_path, rehearsal={"rehearsal": {"of": "demo", "train": 0.5}}).runs
    assert len({plain.digest, changed.digest, shorter.digest}) == 3
    assert (plain.config.training.adam_epsilon, changed.config.training.adam_epsilon) == (1e-8, 1e-4)


@pytest.mark.parametrize(
    ("rehearsal", "said"),
    [
        ({"rehearsal": {"of": "dem"}}, r"data set past: `rehearsal\.of` is 'dem', none of .*did you mean `demo`\?"),
        ({"rehearsal": {"of": "past"}}, r"data set past: `rehearsal\.of` is 'past', none of 'clock', 'demo', 'last'"),
        ({"rehearsal": {"of": "demo", "train": 1.5}}, r"data set past: `rehearsal\.train` must be between 0 and 1"),
        ({"rehearsal": {"of": "clock"}}, r"needs a log split by user_order, and clock is split by global_time"),
        ({"params": {"split": {"min_history": 3}}}, r"a rehearsal has `synth`, `events`, `split` of demo: leave them"),
    ],
)
def test_a_rehearsal_that_cannot_be_made_is_refused(tmp_path: Path, rehearsal: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        written(tmp_path, rehearsal=rehearsal)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"measure": "quality"}, r"past is a rehearsal, without test targets: say `measure: validation`"),
        ({"data_sets": ["last"]}, r"last has no validation targets: `split\.validation_share` is 0"),
        ({"params": {"training": {"evaluations": 0}}}, r"a trial needs `training\.evaluations` of at least 1"),
    ],
)
def test_a_trial_needs_validation_targets_and_takes_no_others(tmp_path: Path, group: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"group trials: {said}"):
        written(tmp_path, group)


def test_trials_and_judged_runs_share_no_table(tmp_path: Path) -> None:
    grid = written(tmp_path)
    content = yaml.safe_load((tmp_path / "study.yaml").read_text())
    content["groups"].append({"name": "trials", "data_sets": ["demo"], "paradigms": ["dti"]})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="`measure` is validation in one part and not in another: name them apart"):
        grids.load(Path(grid.path))


def trial(run: grids.Run, *aucs: float) -> analyse.Row:
    learning = [[float(place), auc] for place, auc in enumerate(aucs, 1)]
    return run.facts() | {
        "workers": 4, "commit": "0123456789abcdef", "hardware": "card", "train_seconds": 3.0, "targets": 10,
        "targets_per_second": 5.0, "tokens_per_second": 50.0, "tokens_per_target": 10.0, "learning": learning,
        "validation_auc": aucs[-1],
    }  # fmt: skip


def test_the_table_of_trials_shows_the_curve_s_end_and_best_point_and_nothing_of_a_test(tmp_path: Path) -> None:
    grid = written(tmp_path, {"models": ["", "eps4"], "seeds": [1, 2]})
    curves = [(0.7, 0.76, 0.74), (0.7, 0.78, 0.76), (0.6, 0.65, 0.7), (0.6, 0.65, 0.7)]
    found = [trial(run, *curve) for run, curve in zip(grid.runs, curves, strict=True)]
    found[0]["floors"] = {"item_rate": 0.61}
    shown = write.group_tables(grid, found, "trials")
    assert "|  | model | validation AUC | best | curve |" in shown
    assert "| `dti` |  | 0.7500 (0.7400 to 0.7600) | 0.7700 | 0.7000 0.7700 0.7500 |" in shown
    assert "| `dti` | eps4 | 0.7000 (0.7000 to 0.7000) | 0.7000 | 0.6000 0.6500 0.7000 |" in shown
    assert "| floor: item rate |  | 0.6100 |  |  |" in shown
    assert "**past**: 2 seeds; validation targets, in streaming prompts; " in shown
    assert "test" not in shown


def test_the_floors_of_a_trial_are_those_of_its_validation_targets(tmp_path: Path) -> None:
    grid = written(tmp_path)
    log = Paths(tmp_path / "log")
    events(log)
    rehearse(log, Paths(tmp_path / "past"), 0.6)
    (row,) = (trial(run, 0.7) for run in grid.runs)
    analyse.derive(grid, [row], tmp_path)
    past = interactions.read(Paths(tmp_path / "past"), 2)
    held = [place for place, split in enumerate(past.table["split"].to_pylist()) if split == "validation"]
    expected = metrics.auc(past.label[held], floors(past, held, row["n"])["item_rate"])
    assert row["floors"].keys() == set(FLOORS)
    assert row["floors"]["item_rate"] == pytest.approx(expected, abs=1e-6)
    assert row["auc_difference"] is None
