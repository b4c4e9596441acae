"""A stage killed at any point, and run again, leaves what one leaves that nobody disturbed."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import BY_NAME
from tests import small
from tests.killing import ALL, FEW, Attack, preload

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
