"""What the machine refuses ends a command with one sentence, exit code 2, and no traceback."""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from great_expectations.render.renderer import site_builder
from safetensors.torch import save_file
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from dti_pipeline import tracking
from dti_pipeline.cli import app
from dti_pipeline.errors import InputError
from dti_pipeline.events.database import connect, write_parquet
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import Stage
from dti_pipeline.training import checkpoint
from dti_pipeline.validation import docs
from dti_pipeline.validation.tables import Tables

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (FULL, "error: {home}: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"), "error: /data/x: Read-only file system"),
        (OSError(errno.EMFILE, "Too many open files"), "error: Too many open files"),
        (RuntimeError("can't start new thread"), "error: there is too little memory: can't start new thread"),
        (MemoryError("31 GiB for an array"), "error: there is too little memory: 31 GiB for an array"),
    ],
)
def test_a_command_that_the_machine_refuses_says_what_and_where(
    home: Paths, monkeypatch: pytest.MonkeyPatch, refused: Exception, said: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise refused

    monkeypatch.setattr(Stage, "run", refuse)
    done = CliRunner().invoke(app, ["synth"])
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [said.format(home=home.home)]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 4 KiB: a write says so as on a full disk, with another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_weights_that_cannot_be_written_are_a_file_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(OSError, match="File too large") as refused, checkpoint.writing(path), full_disk():
        save_file({"weight": torch.zeros(100_000)}, path)
    assert refused.value.filename == str(path)


def test_any_other_error_is_a_bug_and_keeps_its_traceback(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stage, "run", lambda *_, **__: {}["missing"])
    assert isinstance(CliRunner().invoke(app, ["synth"]).exception, KeyError)
    monkeypatch.setattr(Stage, "run", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    assert isinstance(CliRunner().invoke(app, ["synth"]).exception, RuntimeError)


def test_a_page_of_data_docs_that_cannot_be_written_ends_the_check(tmp_path: Path) -> None:
    """Great Expectations logs the error and goes on without the page."""

    class Context:
        def build_data_docs(self) -> None:
            try:
                raise FULL
            except OSError:
                logging.getLogger(site_builder.__name__).error("An unexpected Exception occurred")

    with pytest.raises(OSError, match="No space left"):
        docs.build(Context(), tmp_path, [], [])


def test_a_log_that_cannot_be_written_is_one_plain_sentence(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    with (
        pytest.raises(InputError, match=r"^the log could not be read or written: [^{]*log\.parquet[^{]*$"),
        connect("1GB", tmp_path) as connection,
        full_disk(),
    ):
        write_parquet(connection, "SELECT range AS n FROM range(2000000)", path)


def test_a_query_that_the_machine_refuses_is_no_broken_rule(tmp_path: Path) -> None:
    """Great Expectations takes an error for a check that failed: it is noted, and raised when the suite is over."""
    with duckdb.connect() as connection:
        tables = Tables(connection, 3)
        for ask in (tables.count, tables.rows, tables.frame):
            with pytest.raises(duckdb.IOException):
                ask(f"FROM read_parquet('{tmp_path}/gone.parquet')")
            with pytest.raises(duckdb.CatalogException):
                ask("FROM another_log")
        assert len(tables.refused) == 3


def test_a_store_that_refuses_is_quoted_without_its_statement() -> None:
    statement = "CREATE TABLE experiments (experiment_id INTEGER NOT NULL)"
    with pytest.raises(InputError, match=r"database or disk is full$"), tracking._mlflow():
        raise OperationalError(statement, {}, Exception("database or disk is full"))
