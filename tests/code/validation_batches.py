"""A good batch as ingestion would leave it, written straight to Parquet, to be spoilt by the validation tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline import artifacts
from dti_pipeline.config import Config, SplitConfig, ValidationConfig
from dti_pipeline.events.report import IngestReport
from dti_pipeline.paths import Paths
from dti_pipeline.plain import from_plain
from dti_pipeline.validation.report import Outcome
from dti_pipeline.validation.validate import OUTCOMES
from tests.reports import INGEST

STAGED = pa.schema(
    [
        ("line", pa.int64()), ("raw", pa.string()), ("user_id", pa.string()), ("item_id", pa.string()),
        ("rating", pa.float64()), ("timestamp", pa.float64()), ("item_text", pa.string()), ("request_id", pa.string()),
        ("split", pa.string()), ("reason", pa.string()),
    ]
)  # fmt: skip
INTERACTIONS = pa.schema(
    [
        ("user_id", pa.string()), ("item_id", pa.string()), ("item_text", pa.string()), ("timestamp", pa.float64()),
        ("rating", pa.float64()), ("label", pa.int8()), ("split", pa.string()), ("position", pa.int32()),
        ("request", pa.int32()), ("known", pa.int32()),
    ]
)  # fmt: skip
DIGEST = "0123456789abcdef0123456789abcdef"
USERS, LENGTH = 8, 20
CONFIG = Config(
    split=SplitConfig(min_history=2),
    validation=ValidationConfig(min_rows=100, min_users=5, min_targets=5, max_shown_rows=3),
)


@dataclass
class Batch:
    """A good batch, to be spoilt: 8 users of 20 rows each, one clock, 4 refused lines of 164 in one raw file."""

    staged: list[dict[str, Any]]
    interactions: list[dict[str, Any]]
    report: IngestReport
    staged_schema: pa.Schema = STAGED
    schema: pa.Schema = INTERACTIONS

    def write(self, paths: Paths) -> None:
        with artifacts.publish(paths.events, "ingest") as draft:
            pq.write_table(pa.Table.from_pylist(self.interactions, self.schema), draft.path / "interactions.parquet")
            draft.report = self.report
        manifest = artifacts.read(paths.events, "ingest")
        inputs = {"log/ratings.csv": DIGEST}  # what ingestion records of the raw file
        raw = {"schema_version": 1, "stage": "ingest", "config": {}, "inputs": inputs}
        whole = artifacts.sealed(raw | {"report": manifest.report, "files": manifest.files})
        artifacts.write_json(paths.events / "manifest.json", whole)
        paths.staged.mkdir(parents=True, exist_ok=True)
        for left in paths.staged.iterdir():
            left.unlink()
        part = paths.staged / "part"
        pq.write_table(pa.Table.from_pylist(self.staged, self.staged_schema), part)
        own = artifacts.file_digest(part)[:16]
        part.rename(paths.staged / f"{DIGEST[:16]}-00000000-{own}.parquet")


def outcomes_of(paths: Paths) -> list[Outcome]:
    """What the checks of a home found, as their file has it."""
    return [from_plain(Outcome, row) for row in json.loads((paths.checks / OUTCOMES).read_text())]


def good_batch(users: int = USERS) -> Batch:
    interactions = []
    for user in range(users):
        for position in range(LENGTH):
            rating = 5.0 if (user + position) % 3 else 2.0
            interactions.append(
                {
                    "user_id": f"u{user}",
                    "item_id": f"i{(user * 7 + position) % 40}",
                    "item_text": f"Film {(user * 7 + position) % 40}",
                    "timestamp": 1_000_000 + position * 100 + user,
                    "rating": rating,
                    "label": int(rating > 3),
                    "split": "train" if position < 12 else "validation" if position < 16 else "test",
                    **dict.fromkeys(("position", "request", "known"), position),
                }
            )
    staged = [
        {"line": line, "raw": None, "reason": None}
        | {name: row[name] for name in ("user_id", "item_id", "rating", "timestamp")}
        for line, row in enumerate(interactions, start=2)
    ]
    first = len(staged) + 2
    staged += [{"line": first + i, "raw": "u1,,x,", "reason": "item id missing"} for i in range(4)]
    kept = len(interactions)
    report = replace(INGEST, read=kept + 4, kept=kept, quarantined=4, duplicates=0, rating_scale=(0.0, 5.0))
    return Batch(staged, interactions, report)
