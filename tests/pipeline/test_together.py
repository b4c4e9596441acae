"""Two of anything at once in one home end as one after the other, in one of both orders, with no traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain
from tests import small
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
