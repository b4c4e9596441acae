"""What SECURITY.md promises: nothing runs that came with data, nobody is let in, and nothing private is printed."""

from __future__ import annotations

import ast
import inspect
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from dti_pipeline import cli_serving, errors, explain, ui
from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation.page import POLICY
from dti_pipeline.evaluation.tables import _as_text
from dti_pipeline.paths import Paths
from dti_pipeline.validation.docs import build
from dti_pipeline.validation.expectations import ExpectUnexpectedRowsToBeAtMost
from tests.pipeline.test_fuzz_served import client as client  # noqa: PLC0414  # a fixture

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for package in ("dti_pipeline", "experiments") for path in (ROOT / package).rglob("*.py")]
#: What an attacker would like to stand in a page, a statement or a command.
SCRIPT = "<script>alert(1)</script>"


def calls(path: Path) -> set[str]:
    """Names of what a module calls or imports, and the keywords that it passes as true."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
            found |= {word.arg for word in node.keywords if word.arg and ast.unparse(word.value) == "True"}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_nothing_that_is_read_is_run() -> None:
    """No pickle, no code of a model's own, no shell; the one exception is the code that an export writes itself."""
    forbidden = {
        "pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "torch.load", "np.load", "numpy.load",
        "os.system", "os.popen", "eval", "exec", "shell", "trust_remote_code", "allow_pickle",
        "yaml.unsafe_load", "yaml.full_load",
    }  # fmt: skip
    assert len(SOURCES) > 150
    found = {str(path.relative_to(ROOT)): calls(path) & forbidden for path in SOURCES}
    assert {name: what for name, what in found.items() if what} == {"dti_pipeline/serving/export/export.py": {"exec"}}


def test_outputs_are_of_forms_that_hold_no_code(small_home: Paths) -> None:
    files = {path for top in ("data", "models", "reports") for path in (small_home.home / top).rglob("*")}
    files -= set(small_home.data_docs.rglob("*"))  # with Great Expectations' own fonts and pictures
    forms = {path.suffix for path in files if path.is_file() and not path.name.startswith(".")}
    assert forms <= {".json", ".csv", ".parquet", ".arrow", ".safetensors", ".html", ".svg", ".png", ".md"}


def test_servers_listen_on_this_machine_alone() -> None:
    assert inspect.signature(cli_serving.serve_requests).parameters["host"].default == "127.0.0.1"
    assert ui.HOST == "127.0.0.1"


@pytest.mark.parametrize(
    "address",
    [
        "http://me:SECRET@host",
        "postgresql://me:a/SECRET@b@host/db",
        "https://host/x?token=SECRET&a=1",
        "s3://k:SECRET@b/c",
    ],
)
def test_a_password_is_masked_wherever_an_address_is_printed(address: str) -> None:
    settings = from_plain(Config, {"tracking": {"uri": address}})
    shown = [
        str(InputError(f"{address} could not be reached: 'tracking.uri={address}'")),
        explain.in_force(explain.masked(settings)),
        errors.masked(f"tracking.uri={address}"),
    ]
    assert not [text for text in shown if "SECRET" in text]
    assert all("***" in text for text in shown)


def test_messages_cannot_steer_a_terminal() -> None:
    assert str(InputError("item \x1b[2J\u202e\ud83d\n is bad")) == r"item \x1b[2J\u202e\ud83d  is bad"
    assert len(str(InputError("x" * 10_000_000))) == errors.LONGEST


def test_words_of_a_log_are_text_in_data_docs(tmp_path: Path) -> None:
    """They are escaped, and the page would run nothing if they were not."""
    result = SimpleNamespace(result={"unexpected_rows": [{SCRIPT: SCRIPT, "line": None}]})
    (table,) = ExpectUnexpectedRowsToBeAtMost._diagnostic_unexpected_table_renderer(result=result)
    assert SCRIPT not in json.dumps(table.to_json_dict())
    page = tmp_path / "index.html"
    page.write_text("<html><head></head><body></body></html>")
    build(SimpleNamespace(build_data_docs=lambda: None), tmp_path, [], [SCRIPT])
    assert SCRIPT not in page.read_text()
    assert "script-src 'none'" in page.read_text()
    assert "default-src 'none'" in POLICY


def test_a_name_is_text_in_markdown() -> None:
    assert _as_text("ml-1m_small.csv") == "ml-1m_small.csv"
    assert _as_text("[x](http://y)<b>|") == r"\[x\](http://y)\<b\>\|"


def test_the_service_logs_nothing_of_a_request(client: object, caplog: pytest.LogCaptureFixture) -> None:
    item = {"item_text": "PRIVATE title", "label": 1}
    good = {"user_id": "PRIVATE", "history": [item], "candidates": [item]}
    with caplog.at_level(logging.DEBUG):
        for body in (good, good | {"PRIVATE": 1}, good | {"history": "PRIVATE"}, [good]):
            client.post("/v1/score", json=body, headers={"X-Request-Id": "PRIVATE user"})  # type: ignore[attr-defined]
    said = [f"{record.getMessage()} {getattr(record, 'fields', '')}" for record in caplog.records]
    assert any("'status': 422" in line for line in said)
    assert not [line for line in said if "PRIVATE" in line]
