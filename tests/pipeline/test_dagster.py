"""The asset graph's own behaviour, with stages that cost nothing in the place of the real ones."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.tags import TagType, get_tag_type

from dti_pipeline import artifacts, definitions
from dti_pipeline.config import Config
from dti_pipeline.definitions import defs
from dti_pipeline.defs import assets, demo, processes, training, whole_comparison
from dti_pipeline.defs.automation import RETRIED
from dti_pipeline.defs.checks import CHECKS
from dti_pipeline.defs.train_process import report_to
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.evaluation.report import Decision, Delta
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import BACKTEST, STAGES, Stage
from dti_pipeline.tracking import registry
from dti_pipeline.training.progress import Evaluated, FellBack, Finished, Started, Stepped
from dti_pipeline.validation.report import Outcome
from tests.pipeline.stand_ins import Stages, launch
from tests.project import ROOT
from tests.reports import PLAN, TRAIN


def materialization(instance: dg.DagsterInstance, asset: str) -> dg.AssetMaterialization:
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None
    assert event.asset_materialization is not None
    return event.asset_materialization


def evaluations(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {event.check_name: event.passed for event in result.get_asset_check_evaluations()}


def test_the_whole_graph_runs_in_the_tables_order(stages: Stages, instance: dg.DagsterInstance) -> None:
    assert launch(instance).success
    assert stages.ran == [(stage.name, "dti" if stage.per_paradigm else None) for stage in STAGES]
    assert materialization(instance, "model").partition == "dti"


def test_a_run_says_which_process_it_has(stages: Stages, instance: dg.DagsterInstance) -> None:
    run = instance.get_run_by_id(launch(instance, "log").run_id)
    assert run is not None
    assert run.tags[processes.PROCESS].split(":")[1] == str(os.getpid())
    assert get_tag_type(processes.PROCESS) is TagType.HIDDEN, "the page would show it beside every run"


def test_a_data_version_is_the_folders_digest(stages: Stages, instance: dg.DagsterInstance, home: Paths) -> None:
    launch(instance)
    tags = materialization(instance, "shards").tags or {}
    assert tags["dagster/data_version"] == artifacts.folder_digest(home.shards("dti"))


def test_figures_are_numbers_and_the_run_is_linked(
    stages: Stages, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DTI_MLFLOW_URL", "http://mlflow.example:5000")
    stages.change("train", loss=0.0123456789)
    launch(instance)
    assert materialization(instance, "model").metadata["loss"].value == 0.0123457  # as many digits as a page can hold
    events = materialization(instance, "events").metadata
    assert [events[name].value for name in ("read", "kept", "quarantined", "duplicates")] == [100, 90, 6, 4]
    comparison = materialization(instance, "comparison").metadata
    assert isinstance(comparison["auc: dti"], dg.FloatMetadataValue)
    assert comparison["speedup: dti"].value == 5.0
    for asset, name in (("model", "mlflow_run"), ("evaluation", "mlflow_run"), ("comparison", "mlflow_run: dti")):
        url = materialization(instance, asset).metadata[name].value
        assert url == f"http://mlflow.example:5000/#/runs/{'a' * 32}"


def test_pictures_are_shown_inline(stages: Stages, instance: dg.DagsterInstance, home: Paths) -> None:
    real = stages.run

    def draws(stage: Stage, config: Config, paths: Paths, paradigm: str | None = None) -> Any:
        report = real(stage, config, paths, paradigm)
        if stage.name == "evaluate":
            (paths.evaluation("dti") / "roc.png").write_bytes(b"\x89PNG")
        return report

    stages.run = draws  # type: ignore[method-assign]
    launch(instance)
    assert materialization(instance, "evaluation").metadata["roc"].value == "![roc](data:image/png;base64,iVBORw==)"


def test_failed_validation_is_a_failed_check_that_shows_rows_and_stops_what_follows(
    stages: Stages, instance: dg.DagsterInstance
) -> None:
    failure = Outcome(
        suite="raw", name="rating_in_range", expectation="", column="rating", success=False, expected="1 to 5",
        observed="9", unexpected_count=1, failing_rows=({"line": 17, "rating": 9},),
    )  # fmt: skip
    stages.change("validate", success=False, failed=1, failures=(failure,))
    stages.errors["validate"] = CheckFailed("1 of 8 checks failed", stages.reports["validate"])
    result = launch(instance)
    assert not result.success
    assert [name for name, _ in stages.ran] == ["synth", "ingest", "validate"]
    failed = next(event for event in result.get_asset_check_evaluations() if not event.passed)
    assert failed.check_name == "raw_rows"
    assert "| 17 | 9 |" in failed.metadata["rows: rating_in_range"].value
    assert evaluations(result)["canonical_rows"]


def test_a_lost_target_stops_before_training(stages: Stages, instance: dg.DagsterInstance) -> None:
    stages.change("pack", plans={"train": replace(PLAN, targets=89)})
    result = launch(instance)
    assert not evaluations(result)["no_target_lost"]
    assert ("train", "dti") not in stages.ran


def test_targets_dropped_on_request_are_not_lost(stages: Stages, instance: dg.DagsterInstance) -> None:
    asked = replace(PLAN, targets=50, dropped=40, dropped_reason="packing.max_targets = 50")
    stages.change("pack", plans={"train": asked})
    assert evaluations(launch(instance))["no_target_lost"]


def test_a_loss_that_is_no_number_stops_before_evaluation(stages: Stages, instance: dg.DagsterInstance) -> None:
    stages.change("train", loss=None)
    result = launch(instance)
    assert not evaluations(result)["loss_is_finite"]
    assert ("evaluate", "dti") not in stages.ran


def test_an_auc_below_the_floors_warns_and_stops_nothing(stages: Stages, instance: dg.DagsterInstance) -> None:
    stages.change("compare", baselines={"item_rate": 0.8})
    result = launch(instance)
    assert result.success
    check = next(e for e in result.get_asset_check_evaluations() if e.check_name == "above_the_floors")
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.WARN


@pytest.mark.parametrize(("low", "passes"), [(-0.009, True), (-0.011, False), (None, False)])
def test_an_auc_that_may_be_worse_than_the_sliding_windows_warns(
    stages: Stages, instance: dg.DagsterInstance, low: float | None, passes: bool
) -> None:
    stages.change("compare", auc_delta={"dti": Delta(0.0, low, 0.01)})
    result = launch(instance, "comparison")
    assert result.success
    assert evaluations(result)["not_worse_than_sliding_window"] is passes


@pytest.mark.parametrize("promote", [True, False])
def test_what_passed_the_gate_is_promoted_unless_that_is_left_to_a_person(
    stages: Stages, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, promote: bool
) -> None:
    promoted: list[str] = []
    monkeypatch.setattr(registry, "promote", lambda _c, _p, _r, paradigm: promoted.append(paradigm))
    result = launch(instance, "comparison", overrides=(f"tracking.promote={str(promote).lower()}",))
    assert evaluations(result)["champion"]
    assert promoted == (["dti"] if promote else [])


def test_without_a_champion_nothing_is_promoted(
    stages: Stages, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "promote", lambda *_: pytest.fail("promoted"))
    stages.change("compare", champion=None, gate={"dti": Decision(False, "is below a floor")})
    result = launch(instance, "comparison")
    assert result.success
    check = next(e for e in result.get_asset_check_evaluations() if e.check_name == "champion")
    assert not check.passed
    assert "is below a floor" in check.metadata["gate"].value


@pytest.mark.parametrize(
    ("stage", "report", "check"),
    [
        ("synth", {"rows": 0}, "not_empty"),
        ("tokenize", {"tokens_per_interaction": 1.0}, "texts_have_tokens"),
        ("tokenize", {"interactions": 0}, "texts_have_tokens"),
    ],
)
def test_nothing_to_work_on_stops_what_follows(
    stages: Stages, instance: dg.DagsterInstance, stage: str, report: dict[str, Any], check: str
) -> None:
    stages.change(stage, **report)
    result = launch(instance)
    assert not evaluations(result)[check]
    assert stages.ran[-1] == (stage, None)


def test_every_stage_has_a_check() -> None:
    assert set(CHECKS) == {stage.name for stage in (*STAGES, BACKTEST)}


def test_the_whole_comparison_is_a_backfill_of_every_asset_over_the_paradigms_asked_for(
    instance: dg.DagsterInstance,
) -> None:
    asked = instance.get_backfill(whole_comparison.request(instance, ["dti"]))
    assert asked is not None
    target = asked.get_asset_backfill_data(defs.resolve_asset_graph()).target_subset
    wanted = {(key.asset_key.to_user_string(), key.partition_key) for key in target.iterate_asset_partitions()}
    assert wanted == {
        (stage.asset, paradigm) for stage in STAGES for paradigm in (("dti",) if stage.per_paradigm else (None,))
    }
    assert asked.tags == RETRIED, "a run whose process was killed is started again"


def test_partitions_are_the_paradigms_of_params_yaml_so_that_all_that_was_asked_for_is_green(
    home: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DTI_HOME", str(home.home))

    def partitions(params: str) -> list[str]:
        home.params.write_text(params)
        node = definitions.build((), assets.listed()).resolve_asset_graph().get(dg.AssetKey("model"))
        return list(node.partitions_def.get_partition_keys())

    assert partitions("paradigms: [dti_isolated, dti]") == ["dti_isolated", "dti"]
    assert partitions("paradigms: [dtl]") == list(names()), "each step says what is wrong"


@pytest.fixture
def dagster_home(home: Paths, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where Dagster keeps its records."""
    monkeypatch.chdir(home.home)
    monkeypatch.setenv("DAGSTER_HOME", str(home.home))
    return Path(shutil.copy(ROOT / "dagster.yaml", home.home)).parent


def test_the_demo_is_a_run_for_what_is_shared_one_for_each_paradigm_and_one_for_the_comparison(
    stages: Stages, home: Paths, dagster_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.reports.mkdir()
    home.comparison_file("md").write_text("the table\n## Verdict\n\nthe verdict\n## Protocol")
    assert demo.main() == 0
    assert stages.ran == [
        *((name, None) for name in ("synth", "ingest", "validate", "tokenize")),
        *((name, "sliding_window") for name in ("pack", "train", "evaluate")),
        *((name, "dti") for name in ("pack", "train", "evaluate")),
        ("compare", None),
    ]
    assert "the table\n## Verdict\n\nthe verdict\n" in capsys.readouterr().out
    with dg.DagsterInstance.get() as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS] * 4


def test_the_demo_stops_at_the_run_that_fails(
    stages: Stages, dagster_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.change("train", loss=None)
    assert demo.main() == 1
    assert stages.ran[-1] == ("train", "sliding_window")
    assert "loss_is_finite" in capsys.readouterr().out


def crash(times: int, pipes: list[int]) -> Any:
    """In the place of the client: a training process that crashes so many times."""

    def run(*_: Any, **__: Any) -> None:
        pipes.append(1)
        if len(pipes) <= times:
            raise training.Crashed("the training process was killed by SIGKILL")

    return run


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_crashed_training_is_started_again_twice(
    stages: Stages, instance: dg.DagsterInstance, home: Paths, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("DTI_HOME", str(home.home))
    home.params.write_text("tracking: {enabled: false}")
    monkeypatch.setattr(training, "RETRY_SECONDS", 0)
    started: list[int] = []
    monkeypatch.setattr(training.TrainingProcess, "run", crash(times, started))
    with artifacts.publish(home.model("dti"), "train") as draft:
        draft.report = TRAIN
    result = launch(instance, "model")
    assert result.success is (times < 3)
    assert len(started) == min(times, 2) + 1
    if not result.success:
        (failure,) = result.get_step_failure_events()
        assert "killed by SIGKILL" in failure.step_failure_data.error.to_string()


def test_bad_input_is_one_sentence(stages: Stages, instance: dg.DagsterInstance) -> None:
    stages.errors["ingest"] = InputError("data/raw/nothing does not exist")
    result = launch(instance)
    (failure,) = result.get_step_failure_events()
    assert failure.step_failure_data.user_failure_data.description == "data/raw/nothing does not exist"


def test_a_wrong_override_is_one_sentence(stages: Stages, instance: dg.DagsterInstance) -> None:
    (failure,) = launch(instance, "log", overrides=("training.epoch=1",)).get_step_failure_events()
    assert "did you mean `epochs`?" in failure.step_failure_data.user_failure_data.description
    assert stages.ran == []


def test_a_log_of_ones_own_is_read_where_it_lies(stages: Stages, instance: dg.DagsterInstance, home: Paths) -> None:
    (home.home / "mine.csv").write_text("user_id,item_id,rating,timestamp\n")
    home.params.write_text("events: {source: table, path: mine.csv}")
    assert launch(instance, "log").success
    assert stages.ran == []
    tags = materialization(instance, "log").tags or {}
    assert tags["dagster/data_version"] == artifacts.file_digest(home.home / "mine.csv")
    assert materialization(instance, "log").metadata["bytes"].value == 33


def test_a_failure_on_purpose_of_the_training_process_is_its_sentence(
    home: Paths, instance: dg.DagsterInstance
) -> None:
    # The real process, which finds no tokens in an empty home.
    (failure,) = launch(instance, "model", overrides=("tracking.enabled=false",)).get_step_failure_events()
    description = failure.step_failure_data.user_failure_data.description
    assert description.endswith("run `dti tokenize` first")
    assert "Traceback" not in description


def test_progress_is_told_in_words() -> None:
    class Pipes:
        def __init__(self) -> None:
            self.lines: list[str] = []
            self.log = self

        def info(self, line: str) -> None:
            self.lines.append(line)

        def warning(self, line: str) -> None:
            self.lines.append(f"warning: {line}")

    pipes = Pipes()
    listen = report_to(pipes)  # type: ignore[arg-type]
    listen(Started("dti", 1000, 200, 42, "cpu", 1, "0" * 32))
    listen(FellBack("a CUDA graph", "compiled layers", "no memory"))
    for step in (1, 2):  # the second within five seconds: not told
        listen(Stepped(step, 200 + step, 0.5, 0.1, 1.0, 50.0, 500.0, 2.0, 75.0, 0.5))
    listen(Evaluated(400, 4.0, {"auc": 0.7}))
    listen(Finished(1000, 3725.0, TRAIN))
    assert pipes.lines == [
        "dti: 1,000 targets to see, 42 weights to train on 1 x cpu, going on after 200",
        "warning: the training goes on with compiled layers instead of a CUDA graph: no memory",
        "201 of 1,000 targets (20%), loss 0.5000, 50 targets/s, 1:15 left",
        "validation after 400 targets: auc 0.7000",
        "1,000 targets in 1:02:05 of training",
    ]
