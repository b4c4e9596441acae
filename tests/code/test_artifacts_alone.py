"""One process at a time makes an output that takes hours; a second one waits, whatever becomes of the first."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dti_pipeline import artifacts


def test_the_second_waits_for_the_first_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target, done = tmp_path / "models" / "dti", []

    def second() -> None:
        with artifacts.alone(target):
            done.append("second")

    thread = threading.Thread(target=second)
    with artifacts.alone(target):
        thread.start()
        thread.join(0.3)
        done.append("first")
    thread.join(30)
    assert done == ["first", "second"]
    assert f"another process is making {target}: waiting" in caplog.text


def test_other_outputs_do_not_wait(tmp_path: Path) -> None:
    with artifacts.alone(tmp_path / "dti"), artifacts.alone(tmp_path / "sliding_window"):
        pass


def test_who_is_killed_holds_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from dti_pipeline import artifacts\n"
        "with artifacts.alone(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "dti")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    with artifacts.alone(tmp_path / "dti"):
        holder.wait()
