"""The study's file: what it expands to, by what a run is known, and what is said of a wrong key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dti_pipeline.errors import InputError
from experiments import grid as grids
from experiments.grid import Grid, Run
from experiments.identity import settings

ROOT = Path(__file__).resolve().parents[2]


def written(folder: Path, *groups: dict[str, Any], **keys: Any) -> Path:
    content = {
        "data_sets": {
            "demo": {"params": {"events": {"source": "synthetic"}, "training": {"epochs": 2}}},
            "other": {"params": {"events": {"source": "synthetic"}, "training": {"epochs": 2}}},
        },
        "fixes": {"alibi": {"model": {"sum_position": "rope_alibi"}}},
        "models": {"wide": {"model": {"hidden_size": 128}}},
        "groups": [{"name": f"group{i}", "data_sets": ["demo"], **group} for i, group in enumerate(groups)],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content | keys))
    return folder / "study.yaml"


def load(folder: Path, *groups: dict[str, Any], **keys: Any) -> Grid:
    return grids.load(written(folder, *groups, **keys))


def one(grid: Grid, paradigm: str, **facts: Any) -> Run:
    found = [run for run in grid.runs if run.paradigm == paradigm and facts.items() <= run.facts().items()]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"paradims": ["dti"]}, r"study\.yaml: unknown key `groups\[0\]\.paradims`: did you mean `paradigms`\?"),
        ({"paradigms": ["dti_isolate"]}, r"`paradigms` has 'dti_isolate', .*did you mean `dti_isolated`\?"),
        ({"fixes": ["albi"]}, r"group group0: `fixes` has 'albi', .*did you mean `alibi`\?"),
        ({"data_sets": ["demos"]}, r"`data_sets` has 'demos', .*did you mean `demo`\?"),
        ({"k": [0]}, r"data set demo: params key `packing\.targets` must be a whole number from 1"),
        ({"params": {"training": {"epoch": 1}}}, r"unknown params key `training\.epoch`: did you mean `epochs`\?"),
        ({"seeds": []}, r"group group0: `seeds` is empty"),
        ({"measure": "sped"}, r"must be one of quality, validation, speed, not 'sped': did you mean `speed`\?"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_right(tmp_path: Path, group: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(tmp_path, group)


def test_a_figure_of_a_group_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"figures\.leak_k: it draws 'group1', none of 'group0': did you mean `group0`"
    ):
        load(tmp_path, {}, figures={"leak_k": ["group1"]})


@pytest.mark.parametrize("name", ["group0", "other"])
def test_runs_that_a_table_or_a_picture_would_take_for_one_are_refused(tmp_path: Path, name: str) -> None:
    longer = {"name": name, "paradigms": ["dti"], "params": {"packing": {"row_length": 2048}}}
    figures = {"leak_k": ["group0", "other"]} if name == "other" else {}
    said = r"two runs of other parameters are both called 'demo dti k=50 n=20 2 epochs seed 1'"
    with pytest.raises(InputError, match=said):
        load(tmp_path, {"paradigms": ["dti"]}, longer, figures=figures)
    assert len(load(tmp_path, {"paradigms": ["dti"]}, longer | {"name": "apart"}).runs) == 2


def test_a_group_is_every_combination_and_k_of_one_is_the_sliding_window(tmp_path: Path) -> None:
    grid = load(tmp_path, {"k": [1, 5, "all"], "seeds": [1, 2]})
    found = sorted((run.paradigm, str(run.k)) for run in grid.runs if run.facts()["seed"] == 1)
    assert found == [
        ("dti", "5"), ("dti", "all"), ("dti_growing", "5"), ("dti_growing", "all"),
        ("dti_isolated", "1"), ("dti_isolated", "5"), ("dti_isolated", "all"), ("sliding_window", "1"),
    ]  # fmt: skip
    assert len(grid.runs) == 2 * len(found)


def test_a_delay_of_labels_makes_other_runs_on_events_of_their_own(tmp_path: Path) -> None:
    at_once, late = load(tmp_path, {"paradigms": ["dti"]}, {"paradigms": ["dti"], "delays": [None, 60]}).runs
    assert [run.facts()["delay"] for run in (at_once, late)] == [None, 60]
    assert [run.groups for run in (at_once, late)] == [("group0", "group1"), ("group1",)]
    assert [run.home for run in (at_once, late)] == ["demo", "demo-60s"]
    assert at_once.digest != late.digest
    assert late.against == one(load(tmp_path, {"delays": [60]}), "sliding_window").digest


def test_silence_on_ties_means_in_a_digest_what_it_meant_before_there_were_any(tmp_path: Path) -> None:
    def run(**split: Any) -> Run:
        params = {"events": {"source": "synthetic"}, **({"split": split} if split else {})}
        return one(load(tmp_path, {}, data_sets={"demo": {"params": params}}), "dti")

    assert "ties" not in settings(run(ties="ordered").config, ("split",))["split"]
    assert run().digest == run(ties="together").digest != run(ties="ordered").digest


def test_what_a_group_does_not_say_is_the_recipe_s(tmp_path: Path) -> None:
    params = {"events": {"source": "synthetic"}, "packing": {"context": 7, "targets": 9}}
    demo = {"demo": {"params": params | {"training": {"epochs": 3}}}}
    unsaid, said = load(
        tmp_path, {"paradigms": ["dti"]}, {"paradigms": ["dti"], "n": [5], "k": [4], "epochs": [1]},
        data_sets=demo,
    ).runs  # fmt: skip
    facts = ("n", "k", "epochs")
    assert [unsaid.facts()[fact] for fact in facts] == [7, 9, 3.0]
    assert [said.facts()[fact] for fact in facts] == [5, 4, 1.0]


def test_a_recipe_is_the_same_as_its_parameters_and_what_a_log_says_comes_on_top(tmp_path: Path) -> None:
    params = {"events": {"source": "synthetic"}, "packing": {"context": 7}, "training": {"epochs": 3}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(params | {"tracking": {"experiment": "small"}}))
    made = {"demo": {"recipe": "small.yaml", "params": {"training": {"epochs": 2}}}}
    told = {"demo": {"params": params | {"training": {"epochs": 2}}}}
    (own,), (inline,) = (load(tmp_path, {"paradigms": ["dti"]}, data_sets=data_sets).runs for data_sets in (made, told))
    assert own.digest == inline.digest
    assert (own.facts()["n"], own.facts()["epochs"]) == (7, 2.0)
    with pytest.raises(InputError, match=r"larger\.yaml does not exist"):
        load(tmp_path, {}, data_sets={"demo": {"recipe": "larger.yaml"}})


def test_a_run_that_two_groups_ask_for_is_one_run(tmp_path: Path) -> None:
    grid = load(tmp_path, {"paradigms": ["dti"], "k": [5, 10]}, {"paradigms": ["dti"], "k": [10], "epochs": [2]})
    assert len(grid.runs) == 2
    assert one(grid, "dti", k=10).groups == ("group0", "group1")


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [2]}, {"k": [10]}, {"n": [5]}, {"epochs": [1]}, {"fixes": ["alibi"]},
        {"params": {"packing": {"max_targets": 100}}},
        {"models": ["wide"]}, {"measure": "speed"}, {"data_sets": ["other"]}, {"params": {"packing": {"seed": 1}}},
    ],
)  # fmt: skip
def test_whatever_shapes_its_figures_makes_another_run(tmp_path: Path, change: dict[str, Any]) -> None:
    plain, changed = ({"paradigms": ["dti"]}, {"paradigms": ["dti"], **change})
    assert len(load(tmp_path, plain, changed).runs) == 2


@pytest.mark.parametrize("change", [{"split": {"label_threshold": 4}}, {"tokens": {"vocab_size": 512}}])
def test_what_shapes_a_log_is_said_of_the_log_and_makes_other_runs(tmp_path: Path, change: dict[str, Any]) -> None:
    plain = load(tmp_path, {"paradigms": ["dti"]}).runs[0]
    params = {"events": {"source": "synthetic"}, "training": {"epochs": 2}, **change}
    assert load(tmp_path, {"paradigms": ["dti"]}, data_sets={"demo": {"params": params}}).runs[0].digest != plain.digest
    with pytest.raises(InputError, match=f"group group0, params: `{next(iter(change))}` shapes the log, not a run"):
        load(tmp_path, {"params": change})


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"device": "cpu", "checkpoint_seconds": 7, "epochs": 2}},
        {"training": {"weight_decay": 0.01}},  # the default, said aloud
    ],
)
def test_where_and_how_it_is_made_does_not(tmp_path: Path, change: dict[str, Any]) -> None:
    assert len(load(tmp_path, {"paradigms": ["dti"]}, {"paradigms": ["dti"], "params": change}).runs) == 1


def test_where_a_log_lies_does_not(tmp_path: Path) -> None:
    digests = set()
    for events in ({}, {"path": "/elsewhere", "memory_limit": "1GB"}):
        params = {"events": {"source": "movielens", **events}}
        digests.add(load(tmp_path, {}, data_sets={"demo": {"params": params}}).runs[0].digest)
    assert len(digests) == 1


def test_a_run_is_held_against_the_sliding_window_that_differs_in_nothing_but_the_method(tmp_path: Path) -> None:
    group = {"k": [5, 10], "seeds": [1, 2], "fixes": ["", "alibi"], "epochs": [1, 2]}
    grid = load(tmp_path, group | {"paradigms": ["sliding_window", "dti"]}, {"paradigms": ["sliding_window"]})
    for run in grid.runs:
        facts = run.facts()
        same = {key: facts[key] for key in ("seed", "epochs", "n", "model")}
        if run.paradigm == "dti":
            assert run.against == one(grid, "sliding_window", fixes="", **same).digest
    assert all(run.against is None for run in grid.runs if (run.paradigm, run.fixes) == ("sliding_window", ""))


def test_equal_seconds_are_the_groups_own_sliding_window(tmp_path: Path) -> None:
    grid = load(
        tmp_path,
        {"paradigms": ["sliding_window", "dti"], "seeds": [1, 2]},
        {"paradigms": ["sliding_window"], "epochs": [0.2], "seeds": [1, 2], "equal": "seconds", "name": "equal"},
        {"paradigms": ["dti"], "seeds": [1, 2], "equal": "seconds", "name": "equal"},
    )
    for seed in (1, 2):
        run = one(grid, "dti", seed=seed)
        assert run.groups == ("group0", "equal")
        assert run.against == one(grid, "sliding_window", seed=seed, epochs=2.0).digest
        assert run.against_seconds == one(grid, "sliding_window", seed=seed, epochs=0.2).digest


def test_the_committed_study_covers_what_it_is_for() -> None:
    grid = grids.load(ROOT / "experiments" / "study.yaml")
    facts = [run.facts() for run in grid.runs]
    assert {"ml-1m", "ml-latest-small", "movietweetings-100k"} <= {row["dataset"] for row in facts}
    assert {row["k"] for row in facts if row["paradigm"] == "dti_isolated"} >= {1, 5, 10, 20, 50, "all"}
    assert {row["n"] for row in facts if row["paradigm"] == "dti"} >= {5, 10, 20, 50}
    assert len({row["model"] for row in facts}) >= 2
    digests = {run.digest for run in grid.runs}
    for run in grid.runs:  # each has its sliding window in the study, but for the logs that it does not fit
        if run.measure == "quality" and run.paradigm != "sliding_window" and not run.data_set.startswith("ml-1m"):
            assert run.against in digests, run.label()
