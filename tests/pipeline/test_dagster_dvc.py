"""What a run of the asset graph leaves on DVC's record."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from dti_pipeline.defs import dvc_record
from dti_pipeline.paths import Paths
from tests.pipeline.stand_ins import Stages, launch


@pytest.fixture
def dvc_calls(home: Paths, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project whose `dvc` writes its arguments into the file that is returned."""
    home.params.write_text("paradigms: [dti]")
    (home.home / ".dvc").mkdir()
    (home.home / "dvc.yaml").write_text("")
    calls, program = home.home / "calls", home.home / "dvc"
    program.write_text(f"#!/bin/sh\necho \"$@\" >> '{calls}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(dvc_record.shutil, "which", lambda *_, **__: str(program))
    return calls


def logs(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(record.user_message for record in instance.all_logs(result.run_id))


def assert_unrecorded(
    instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult, dvc_calls: Path, why: str
) -> None:
    """The run went well, DVC was not called, and the log says why."""
    assert result.success
    assert not dvc_calls.exists()
    assert why in logs(instance, result)


def test_dvc_records_what_a_run_made(stages: Stages, instance: dg.DagsterInstance, dvc_calls: Path) -> None:
    assert launch(instance, "log", "shards").success
    assert dvc_calls.read_text() == "commit --force synth\ncommit --force pack@dti\n"


def test_dvc_does_not_record_a_run_with_overrides(
    stages: Stages, instance: dg.DagsterInstance, dvc_calls: Path
) -> None:
    result = launch(instance, "shards", overrides=("packing.targets=3",))
    assert_unrecorded(instance, result, dvc_calls, "params.yaml does not describe a run with packing.targets=3")


def test_dvc_does_not_record_a_paradigm_it_has_no_stage_for(
    stages: Stages, instance: dg.DagsterInstance, dvc_calls: Path, home: Paths
) -> None:
    home.params.write_text("paradigms: [sliding_window]")
    result = launch(instance, "shards")
    assert_unrecorded(instance, result, dvc_calls, "`paradigms` in params.yaml does not list dti")


def test_dvc_does_not_record_a_log_that_is_read_where_it_lies(
    stages: Stages, instance: dg.DagsterInstance, dvc_calls: Path, home: Paths
) -> None:
    (home.home / "mine.csv").write_text("user_id,item_id,rating,timestamp\n")
    home.params.write_text("events: {source: table, path: mine.csv}")
    result = launch(instance, "log")
    assert_unrecorded(instance, result, dvc_calls, "the log is read where it lies, mine.csv")


def test_dvc_does_not_record_a_refused_batch(stages: Stages, instance: dg.DagsterInstance, dvc_calls: Path) -> None:
    stages.change("ingest", duplicates=0)
    assert not launch(instance, "events").success
    assert not dvc_calls.exists()


def test_a_dvc_commit_that_fails_is_a_warning_with_the_reason_and_the_command_to_type(
    stages: Stages, instance: dg.DagsterInstance, dvc_calls: Path, home: Paths
) -> None:
    (home.home / "dvc").write_text("#!/bin/sh\necho 'ERROR: no room' >&2\nexit 1\n")
    result = launch(instance, "log")
    assert result.success
    assert "`dvc commit --force synth` failed, run it by hand: ERROR: no room" in logs(instance, result)
    (home.home / "dvc.yaml").write_text("stages: {synth: {cmd: dti synth, params: [synth, tokens.template]}}")
    assert (
        "failed, run it by hand after `dti config --complete`, which adds the defaults of synth, tokens.template:"
        " ERROR: no room" in logs(instance, launch(instance, "log"))
    )
