"""The process that a training has: what becomes of it when it is cancelled, crashes, or loses who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from dti_pipeline.defs import training
from dti_pipeline.defs.train_process import FAILURE
from dti_pipeline.defs.training import TrainingProcess

PATIENCE = 60.0
#: Tells where it is, then does what the test is about.
UP = "import os, signal, sys, time; open(sys.argv[1], 'w').write(str(os.getpid()));"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


def run(instance: dg.DagsterInstance, script: str, up: Path) -> dg.ExecuteInProcessResult:
    """A Dagster run of one step that starts the script."""

    @dg.op
    def step(context) -> None:  # without its type: Dagster reads annotations as they stand
        TrainingProcess().run(context=context, command=[sys.executable, "-c", UP + script, str(up)])

    @dg.job
    def one() -> None:
        step()

    return one.execute_in_process(instance=instance, raise_on_error=False)


def error_of(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = result.get_step_failure_events()
    return failure.step_failure_data.error.to_string()


def wait_for(file: Path) -> int:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if file.exists() and (text := file.read_text()):
            return int(text)
        time.sleep(0.02)
    raise TimeoutError(file)


def cancel(up: Path, times: int = 1) -> threading.Thread:
    """Interrupt this process, as Dagster does in a run that is cancelled, when the script is up."""

    def interrupt() -> None:
        wait_for(up)
        for _ in range(times):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


def test_a_cancelled_process_has_time_to_save(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """Also when the cancel comes twice, as it does from Ctrl-C in a terminal."""
    up, saved = tmp_path / "up", tmp_path / "saved"
    save = f"time.sleep(1.5); open({str(saved)!r}, 'w').write('1'); sys.exit()"
    script = f"\ntry: time.sleep(60)\nexcept KeyboardInterrupt: {save}"
    thread = cancel(up, times=2)
    result = run(instance, script, up)
    thread.join()
    assert not result.success
    assert saved.exists()
    assert not psutil.pid_exists(int(up.read_text()))
    assert "DagsterExecutionInterruptedError" in error_of(result)


def test_what_does_not_end_when_it_is_cancelled_is_ended(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.5)
    up = tmp_path / "up"
    thread = cancel(up)
    result = run(instance, "signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)", up)
    thread.join()
    assert not result.success
    assert not psutil.pid_exists(int(up.read_text()))


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("sys.exit(3)", "the training process ended with code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the training process was killed by SIGKILL"),
    ],
)
def test_a_crash_is_a_sentence(instance: dg.DagsterInstance, tmp_path: Path, script: str, sentence: str) -> None:
    assert sentence in error_of(run(instance, script, tmp_path / "up"))


def test_a_failure_on_purpose_outranks_the_exit_code(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """Under torchrun the first process reports, and the others end with an error."""
    script = (
        "from dagster_pipes import open_dagster_pipes\n"
        f"with open_dagster_pipes() as pipes: pipes.report_custom_message({{{FAILURE!r}: 'no tokens here'}})\n"
        "sys.exit(1)"
    )
    error = error_of(run(instance, script, tmp_path / "up"))
    assert "CheckFailed: no tokens here" in error


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_process_hears_when_the_one_that_started_it_is_killed(tmp_path: Path) -> None:
    child, heard = tmp_path / "child", tmp_path / "heard"
    script = (
        "import os, signal, sys, time\n"
        "from dti_pipeline.defs.train_process import when_the_parent_ends\n"
        f"signal.signal(signal.SIGTERM, lambda *_: open({str(heard)!r}, 'w').write('1') and sys.exit())\n"
        "when_the_parent_ends(signal.SIGTERM)\n"
        f"open({str(child)!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}])"
    parent = subprocess.Popen([sys.executable, "-c", starter])
    process = psutil.Process(wait_for(child))
    parent.kill()
    parent.wait()
    process.wait(PATIENCE)
    assert heard.exists()
