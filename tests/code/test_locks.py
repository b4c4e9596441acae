"""Outputs are written by one process at a time, and not while others read them; whatever becomes of the first."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dti_pipeline import locks
from dti_pipeline.clean import clean
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths

HOLDER = """
import sys, time
from pathlib import Path
from dti_pipeline import locks
with locks.hold(**{sys.argv[2]: [Path(sys.argv[1])]}):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(target: Path, how: str = "writes") -> Iterator[subprocess.Popen[str]]:
    """A process that holds an output."""
    command = [sys.executable, "-c", HOLDER, str(target), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
        holder.kill()


def test_the_second_waits_for_the_first_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target, done = tmp_path / "models" / "dti", []

    def second() -> None:
        with locks.alone(target):
            done.append("second")

    thread = threading.Thread(target=second)
    with locks.alone(target):
        thread.start()
        thread.join(0.3)
        done.append("first")
    thread.join(30)
    assert done == ["first", "second"]
    assert f" uses {target}: waiting for it to end" in caplog.text


@pytest.mark.parametrize(("first", "second"), [("writes", "writes"), ("writes", "reads"), ("reads", "writes")])
def test_who_is_in_the_way_is_named(tmp_path: Path, first: str, second: str) -> None:
    with another(tmp_path / "tokens", first) as holder:
        does = "uses" if second == "writes" else "is making"
        with (
            pytest.raises(InputError, match=rf"process {holder.pid} \(python\) {does} {tmp_path}/tokens: wait for it"),
            locks.hold(**{second: [tmp_path / "tokens"]}, wait=False),
        ):
            pass


def test_readers_do_not_wait_and_neither_do_other_outputs(tmp_path: Path) -> None:
    with another(tmp_path / "tokens", "reads"), locks.hold([tmp_path / "shards"], [tmp_path / "tokens"], wait=False):
        pass


def test_who_is_killed_holds_nothing(tmp_path: Path) -> None:
    with another(tmp_path / "dti") as holder:
        holder.kill()
        with locks.alone(tmp_path / "dti"):
            holder.wait()


def test_a_link_is_locked_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "borrowed").symlink_to("real")
    with another(tmp_path / "real"), pytest.raises(InputError), locks.hold([tmp_path / "borrowed"], wait=False):
        pass


def test_what_is_held_is_not_waited_for(tmp_path: Path) -> None:
    """As `dti run` holds what its stages do."""
    with locks.hold([tmp_path / "dti"]), locks.hold([tmp_path / "dti"], wait=False):
        pass
    with locks.hold([tmp_path / "dti"], wait=False):
        pass


def test_a_lock_file_that_is_removed_parts_nobody(tmp_path: Path) -> None:
    """Whoever waits for a file that is gone asks for the one that took its place."""
    target, inside = tmp_path / "dti", threading.Event()
    at_work: list[str] = []

    def work(name: str) -> None:
        with locks.alone(target):
            at_work.append(name)
            assert len(at_work) == 1
            inside.wait(0.2)
            at_work.remove(name)

    with locks.alone(target):
        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads[:2]:
            thread.start()
        (tmp_path / ".dti.lock").unlink()
    threads[2].start()
    for thread in threads:
        thread.join(30)
    assert at_work == []
    assert not any(thread.is_alive() for thread in threads)


def test_only_the_command_of_a_holder_is_shown() -> None:
    assert (
        locks._command(["/v/bin/python3", "/v/bin/dti", "train", "--set", "tracking.uri=x://me:pw@y", ""])
        == "dti train"
    )
    assert locks._command(["python", "-m", "dti_pipeline.cli", "run", ""]) == "dti_pipeline.cli run"
    assert locks._command(["python", "-c", "secret", ""]) == "python"
    assert locks._command(["dti", "postgresql://me:pw@host", ""]) == "dti"


def test_cleaning_is_refused_while_something_runs_and_removes_what_was_made(home: Paths) -> None:
    for path in (home.events, home.model("dti"), home.reports, home.raw / "ml-1m", home.study):
        path.mkdir(parents=True)
    (home.home / "data" / ".events.draft-x").mkdir()
    with another(home.tokens, "reads"), pytest.raises(InputError, match=r"uses .*/data/tokens"):
        clean(home)
    assert home.events.exists()
    removed = clean(home)
    assert {"data/events", "models/dti", "reports", "data/.events.draft-x"} <= set(removed)
    left = {str(path.relative_to(home.home)) for path in home.home.rglob("*")}
    assert left - {"data", "models", "data/raw"} == {"data/raw/ml-1m", "study"}
