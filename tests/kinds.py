"""How a kind of input is written down, with a trial of what it gets: for the table in docs/reliability.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline.config import ValidationConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.report import IngestReport
from dti_pipeline.paths import Paths
from dti_pipeline.serving.requests import parse_line
from dti_pipeline.validation.validate import validate
from tests.code.raw_logs import HEADER, quarantine, rows, settings


class Kind(NamedTuple):
    """A kind of input, what it gets, in plain words, and a trial that raises where it gets something else."""

    of: str  # the table's first column
    name: str
    gets: str
    tried: Callable[[Paths], None]


KINDS: list[Kind] = []


def kind(of: str, name: str, gets: str) -> Callable[[Callable[[Paths], None]], Callable[[Paths], None]]:
    def add(tried: Callable[[Paths], None]) -> Callable[[Paths], None]:
        KINDS.append(Kind(of, name, gets, tried))
        return tried

    return add


# --- how a trial is written


def lines(*body: str, header: str = HEADER) -> str:
    return "\n".join([header, *body, ""])


def ratings(user: str = "u", items: Sequence[str] = ("a", "b", "c")) -> list[str]:
    """Good rows of one user."""
    return [f"{user},{item},4,{1_600_000_000 + 10 * i}" for i, item in enumerate(items)]


def table(home: Paths, where: str = "log.parquet", **columns: Any) -> None:
    """A Parquet log; columns that are not given have plain values."""
    n = len(next(iter(columns.values()))) if columns else 3
    plain = {
        "user_id": ["u"] * n, "item_id": [f"i{k}" for k in range(n)], "rating": [4] * n,
        "timestamp": [1_600_000_000 + 10 * k for k in range(n)],
    }  # fmt: skip
    path = home.home / where
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(plain | columns), path)


def written(home: Paths, text: str | bytes, where: str = "log.csv") -> Path:
    path = home.home / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(home: Paths, where: str = "log.csv", **events: Any) -> IngestReport:
    return ingest(settings(home.home / where, **events), home)


def refused(home: Paths, says: str, where: str = "log.csv", **events: Any) -> None:
    with pytest.raises(InputError, match=says):
        read(home, where, **events)
    assert not home.events.exists()


def ids(home: Paths, column: str = "user_id") -> list[str]:
    return sorted({value for (value,) in rows(home, column)})


def reasons(home: Paths) -> list[str]:
    return [reason for _, _, reason, _ in quarantine(home)]


def checked(home: Paths, where: str = "log.csv", **events: Any) -> list[str]:
    """Names of the checks that a log fails."""
    config = settings(home.home / where, **events)
    limits = ValidationConfig(min_rows=1, min_users=1, min_targets=1, max_untitled_share=1, required=False)
    ingest(config, home)
    return [f"{one.suite}.{one.name}" for one in validate(replace(config, validation=limits), home).failures]


def answer(line: str | bytes, says: str) -> None:
    with pytest.raises(InputError, match=says) as refusal:
        parse_line(line if isinstance(line, bytes) else line.encode(), "line 1")
    assert str(refusal.value).encode()  # it can be printed
