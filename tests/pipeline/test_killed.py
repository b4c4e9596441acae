"""A stage killed at any point, and run again, leaves what one leaves that nobody disturbed."""

from __future__ import annotations

import itertools
import shutil
import signal
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import BY_NAME
from tests import small
from tests.killing import ALL, FEW, Attack, preload, publish

#: Kills of each stage: some here, and by `make test-slow` at least 100 in all.
SOME = {"ingest": 2, "pack": 2, "train": 2}
MANY = dict.fromkeys(("ingest", "validate", "tokenize", "pack", "train", "evaluate", "compare"), 15)
CASES = [(name, range(kills)) for name, kills in SOME.items()]
LONG = [pytest.param(name, range(100, 100 + kills), marks=pytest.mark.long) for name, kills in MANY.items()]


@pytest.fixture(scope="module")
def home(small_home: Paths, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    home = tmp_path_factory.mktemp("killed") / "home"
    shutil.copytree(small_home.home, home)
    shutil.copy(empty_store, home / "mlflow.db")
    return Paths(home)


@pytest.mark.parametrize(("name", "numbers"), [*CASES, *LONG])
def test_what_was_killed_ends_as_if_it_had_not_been(
    home: Paths, name: str, numbers: range, request: pytest.FixtureRequest
) -> None:
    preload(ALL if "long" in request.keywords else FEW)
    stage = BY_NAME[name]
    config = small.configured(tracking={"enabled": True}, training={"checkpoint_seconds": 0})
    attack = Attack(config, home, stage, "dti" if stage.per_paradigm else None)
    attack.undisturbed()  # whose record, and copies of code, the next one has
    known = attack.undisturbed()
    killed = 0
    for number in numbers:
        died = attack.kill(number, known)
        killed += died
        left = attack.outputs()
        assert left == {} or left.items() <= known.outputs.items(), f"kill {number} left a mixture"
        attack.again()
        assert attack.outputs() == known.outputs, f"after kill {number}"
        assert attack.names() == known.names, f"kill {number} left something for ever"
        if name == "train":
            recorded_once(home)
    print(f"{name}: {killed} kills of {len(numbers)} tries")
    assert killed >= len(numbers) / 2


#: What lies beside the folder of an earlier output: links into it; files, as DVC checks out; nothing, and no folder.
BEFORE = ("links", "files", "nothing")


def put(output: Path, before: str, kept: Path) -> None:
    """Have an output folder, and what lies beside it, as ``before`` says, from those that are ``kept``; no drafts."""
    for path in [output, *output.parent.glob(f".{output.name}.draft-*")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in output.parent.glob(f".{output.name}.*.draft-*"):
        path.unlink()
    for one in kept.glob(f"{output.name}.*"):
        (output.parent / one.name).unlink(missing_ok=True)
        if before != "nothing":
            shutil.copy(one, output.parent, follow_symlinks=before == "files")
    if before != "nothing":
        shutil.copytree(kept / output.name, output)


def left_of(output: Path, names: Iterable[str]) -> dict[str, str | None]:
    """What a reader finds under each name, by which of an output's files lie beside its folder."""
    beside = [output.parent / name for name in names]
    return {path.name: path.read_text() if path.exists() else None for path in beside}


@pytest.mark.parametrize("before", ["files", *(pytest.param(one, marks=pytest.mark.long) for one in BEFORE)])
def test_an_output_and_its_links_are_of_one_run_wherever_it_is_killed(tmp_path: Path, before: str) -> None:
    """At each call of a small publication, as :func:`compare` makes its own."""
    preload(FEW)
    output, kept, none = tmp_path / "home" / "x", tmp_path / "kept", dict.fromkeys(("x.json", "x.md", "x.html"))
    old, new = (dict.fromkeys(none, text) for text in ("old", "new"))
    assert publish(output, old) == 0
    shutil.copytree(output.parent, kept, symlinks=True)
    found = []
    for call in itertools.count(1):
        put(output, before, kept)
        code = publish(output, new, call)
        found.append(left_of(output, none))
        assert found[-1] in ([none, new] if before == "nothing" else [old, new]), f"call {call}: {found[-1]}"
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if call % 5 == 0 or [*output.parent.glob(f".{output.name}.*.draft-*")]:
            assert publish(output, new) == 0
            assert left_of(output, none) == new
            assert {path.name for path in output.parent.iterdir()} == {path.name for path in kept.iterdir()}
    print(f"links of a small output beside {before}: {len(found) - 1} kills")
    assert len(found) > 25
    assert found.count(new) > 1, "killed behind the step, too"


@pytest.mark.long
@pytest.mark.parametrize("before", BEFORE)
def test_a_comparison_and_its_links_are_of_one_run_wherever_it_is_killed(
    home: Paths, before: str, tmp_path: Path
) -> None:
    """At every second of its last forty calls, in which the links are made and the folder takes its place."""
    preload(ALL)
    output, kept = home.comparison, tmp_path / "kept"
    attack = Attack(small.configured(), home, BY_NAME["compare"], None)
    names = [home.comparison_file(suffix).name for suffix in ("json", "md", "html")]
    attack.again()
    new, whole = left_of(output, names), attack.outputs()
    shutil.copytree(output.parent, kept, symlinks=True)
    old = {name: f"{text} of an earlier run" for name, text in new.items()}
    for name, text in old.items():
        (kept / output.name / name).write_text(text)
    put(output, before, kept)
    calls = attack.again()
    allowed = [dict.fromkeys(names), new] if before == "nothing" else [old, new]
    killed = 0
    for call in range(calls - 40, calls + 1, 2):
        put(output, before, kept)
        killed += attack.kill_at(call)
        assert left_of(output, names) in allowed, f"call {call} of {calls} left a mixture"
        if call % 8 == 0 or [*output.parent.glob(f".{output.name}.*.draft-*")]:
            attack.again()
            assert attack.outputs() == whole, f"after call {call}"
            assert not [*output.parent.glob(".*draft*")]
    print(f"links of compare beside {before}: {killed} kills of 21 tries")
    assert killed > 15


def recorded_once(home: Paths) -> None:
    """No run of a dead process is at work, no run has two models or versions, and the alias is on the newest."""
    with closing(sqlite3.connect(home.home / "mlflow.db")) as store:
        assert store.execute("SELECT run_uuid FROM runs WHERE status = 'RUNNING'").fetchall() == []
        twice = "SELECT run_id FROM model_versions GROUP BY run_id HAVING count(*) > 1"
        assert store.execute(twice).fetchall() == []
        logged = (
            "SELECT source_run_id FROM logged_models WHERE lifecycle_stage = 'active'"
            " GROUP BY source_run_id HAVING count(*) > 1"
        )
        assert store.execute(logged).fetchall() == []
        (alias,) = store.execute("SELECT version FROM registered_model_aliases WHERE alias = 'dti'").fetchone()
        (newest,) = store.execute("SELECT max(version) FROM model_versions WHERE name = 'dti'").fetchone()
        assert alias == newest
