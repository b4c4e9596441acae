"""The pages a person opens: they come up with the graph on them, and leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dti_pipeline import ui
from dti_pipeline.errors import InputError
from dti_pipeline.pipeline import STAGES

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
PATIENCE = 180  # seconds; a busy machine starts Dagster's processes slowly


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clone's root, without data."""
    for name in ("pyproject.toml", "dagster.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "dti_pipeline").symlink_to(ROOT / "dti_pipeline")
    return tmp_path


@pytest.fixture
def start(root: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command at the root; whatever is left of it at the end is ended."""
    started: list[psutil.Process] = []

    def run(*command: str | Path) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key not in ("DTI_HOME", "DAGSTER_HOME")}
        environment |= {"HOME": str(root), "VIRTUAL_ENV": sys.prefix}
        process = subprocess.Popen(
            list(map(str, command)), cwd=root, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        started.append(psutil.Process(process.pid))
        return process

    yield run
    for process in started:
        if process.is_running():
            for child in [*process.children(recursive=True), process]:
                child.kill()


def assets_at(url: str, process: subprocess.Popen[str]) -> set[str]:
    """Names of the assets that a Dagster page shows, once it answers."""
    query = json.dumps({"query": "{ assetNodes { assetKey { path } } }"}).encode()
    request = urllib.request.Request(f"{url}/graphql", query, {"Content-Type": "application/json"})
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        assert process.poll() is None, process.stdout.read()
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return {node["assetKey"]["path"][-1] for node in json.load(answer)["data"]["assetNodes"]}
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise TimeoutError(url)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


@pytest.mark.slow
def test_make_ui_prints_both_addresses_and_ctrl_c_leaves_nothing(root: Path, start) -> None:
    process = start(sys.executable, "-m", "dti_pipeline.ui")
    urls, printed = {}, []
    for line in process.stdout:
        printed.append(line)
        if "http://" in line:
            name, url = line.split()
            urls[name] = url
        if "Ctrl-C" in line:
            break
    assert set(urls) == {"Dagster", "MLflow"}, printed
    assert "workflowType=machine_learning" in urls["MLflow"], "not on the page about language-model traces"
    assert assets_at(urls["Dagster"], process) == {*(stage.asset for stage in STAGES), "item_states"}
    with urllib.request.urlopen(urls["MLflow"], timeout=10) as answer:
        assert b"MLflow" in answer.read()
    everybody = family(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    _, alive = psutil.wait_procs(everybody, timeout=30)
    assert alive == []


@pytest.mark.slow
@pytest.mark.parametrize("program", ["dg", "dagster"])
def test_dev_without_arguments_opens_the_project(root: Path, start, program: str) -> None:
    port = ui.free_port(3500)
    process = start(PROGRAMS / program, "dev", "--port", str(port))  # the port only so that no other page is met
    assert assets_at(f"http://127.0.0.1:{port}", process) == {*(stage.asset for stage in STAGES), "item_states"}
    assert (root / ".dagster" / "history").is_dir(), "runs are kept in the clone, not in a folder that goes"
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)


def test_a_program_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    server = ui.Server.start("Dagster", 1, [sys.executable, "-c", "exit(3)"], dict(os.environ), tmp_path)
    server.process.wait(PATIENCE)
    with pytest.raises(InputError, match=r"Dagster ended with code 3: see .*dagster\.log"):
        server.wait_until_it_answers()


def test_what_does_not_end_by_itself_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui, "STOP_SECONDS", 0.5)
    child = "import time; time.sleep(600)"
    stubborn = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        f" subprocess.Popen([sys.executable, '-c', {child!r}]); print('up', flush=True); time.sleep(600)"
    )
    server = ui.Server.start("MLflow", 1, [sys.executable, "-c", stubborn], dict(os.environ), tmp_path)
    until = time.monotonic() + PATIENCE
    while "up" not in server.log.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    everybody = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children()]
    assert len(everybody) == 2
    server.stop()
    _, alive = psutil.wait_procs(everybody, timeout=30)
    assert alive == []


def test_a_taken_port_is_not_asked_for() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert ui.free_port(port) != port
