"""Two of anything at once in one home end as one after the other, in one of both orders, with no traceback."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import dagster as dg
import pytest
import yaml
from typer.testing import CliRunner

from dti_pipeline import cli, locks
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import STAGES
from dti_pipeline.plain import to_plain
from tests import small
from tests.pipeline.stand_ins import Stages, launch
from tests.together import ALL, FEW, command, fresh, pairs, preload, serial, together

SOME = [("ingest", "ingest")]
LONG = [pytest.param(*pair, 4, marks=pytest.mark.long) for pair in pairs()]


@pytest.fixture(scope="module")
def made(small_home: Paths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("together") / "made"
    shutil.copytree(small_home.home, home, symlinks=True)
    (home / "params.yaml").write_text(
        yaml.safe_dump(to_plain(small.configured(backtest={"period_days": 40, "staleness": []})))
    )
    return home


@pytest.mark.parametrize(("one", "other", "times"), [*((*pair, 1) for pair in SOME), *LONG])
def test_two_at_once_are_one_after_the_other(
    made: Path, tmp_path: Path, one: str, other: str, times: int, request: pytest.FixtureRequest
) -> None:
    preload(ALL if "long" in request.keywords else FEW)
    first, second = command(one, 0), command(other, 1)
    forth = serial(fresh(made, tmp_path / "forth"), first, second)
    back = serial(fresh(made, tmp_path / "back"), second, first)
    allowed = {(forth.codes, forth.state), (back.codes[::-1], back.state)}
    waits = 0
    for number in range(times):
        found = together(fresh(made, tmp_path / "both"), first, second, number, forth.seconds)
        waits += found.waited
        assert "Traceback" not in found.said, found.said
        refused = "clean" in (one, other) and found.refused
        assert refused or (found.codes, found.state) in allowed, f"{found.codes}\n{found.said}"
    print(f"{one} and {other}: {times} starts, in {waits} of them one waited or was refused")


def test_dagster_and_the_command_line_hold_the_same(
    stages: Stages, instance: dg.DagsterInstance, home: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does DVC, whose commands are those of the command line."""
    held: list[tuple[set[Path], set[Path]]] = []

    def hold(writes: set[Path], reads: set[Path]) -> AbstractContextManager[None]:
        held.append((writes, reads))
        return nullcontext()

    monkeypatch.setattr(locks, "hold", hold)
    for stage in (stage for stage in STAGES if not stage.told):  # a training is a process of its own
        held.clear()
        launch(instance, stage.asset)
        arguments = [stage.name, *(["--paradigm", "dti"] if stage.per_paradigm else [])]
        assert CliRunner().invoke(cli.app, arguments).exit_code == 0
        through_dagster, through_command = held
        assert through_dagster == through_command
        assert through_command[0] == {stage.output(home, "dti")}
        assert stage.name == "synth" or through_command[1]
