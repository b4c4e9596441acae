"""Reports go to JSON and back, and a manifest of another version is refused in one sentence."""

from __future__ import annotations

import json

import pytest

from dti_pipeline import artifacts
from dti_pipeline.errors import InputError
from dti_pipeline.packing.report import PackReport
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import STAGES, Stage
from dti_pipeline.plain import from_plain, to_plain
from tests.reports import PACK, REPORTS


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stages_report_comes_back_from_json_as_it_was(stage: Stage[object]) -> None:
    report = REPORTS[stage.name]
    assert type(report) is stage.report
    assert from_plain(stage.report, json.loads(json.dumps(to_plain(report), allow_nan=False))) == report


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": None}, "`rows` must be a whole number"),
        ({"more": 1}, "unknown key `more`"),
        ({}, "`plans` is missing"),
    ],
)
def test_a_manifest_of_another_version_names_its_key_and_the_command(
    home: Paths, change: dict[str, object], says: str
) -> None:
    with artifacts.publish(home.shards("dti"), "pack") as draft:
        draft.report = to_plain(PACK) | change
        if not change:
            del draft.report["plans"]
    with pytest.raises(InputError, match=rf"manifest\.json is of another version \(.*{says}.*\): run `dti pack` again"):
        artifacts.read(home.shards("dti"), "pack", PackReport)
    assert artifacts.read(home.shards("dti"), "pack").stage == "pack", "who needs no report can read the rest"
