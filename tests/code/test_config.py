"""Where a configuration's values come from."""

from __future__ import annotations

import pytest

from dti_pipeline import config
from dti_pipeline.paths import Paths


@pytest.mark.parametrize(
    ("environment", "written", "overrides", "uri"),
    [
        ("", "", [], None),
        ("http://mlflow:5000", "", [], "http://mlflow:5000"),
        ("http://mlflow:5000", "tracking: {uri: http://mine:5000}", [], "http://mine:5000"),
        (
            "http://mlflow:5000",
            "tracking: {uri: http://mine:5000}",
            ["tracking.uri=http://this:5000"],
            "http://this:5000",
        ),
    ],
    ids=["home", "environment", "params.yaml", "override"],
)
def test_runs_are_recorded_where_the_nearest_one_says(
    home: Paths,
    monkeypatch: pytest.MonkeyPatch,
    environment: str,
    written: str,
    overrides: list[str],
    uri: str | None,
) -> None:
    monkeypatch.setenv("DTI_TRACKING_URI", environment)
    home.params.write_text(written)
    assert config.load(home.params, overrides).tracking.uri == uri
