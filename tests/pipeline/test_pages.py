"""Dagster's page as a person meets it: opened in a headless Chromium, worked with the mouse."""

from __future__ import annotations

import os
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
from dti_pipeline.pipeline import STAGES
from tests.browser import Browser, browser
from tests.project import ROOT, Project

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PATIENCE = 180.0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def page(project: Project) -> Iterator[str]:
    """The address of `dg dev`, opened on the small project."""
    port = ui.free_port(3600)
    (project.home / "dti_pipeline").symlink_to(ROOT / "dti_pipeline")
    environment = os.environ | {
        "DAGSTER_HOME": str(project.home),
        "DTI_HOME": str(project.home),
        "CUDA_VISIBLE_DEVICES": "",
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = (project.home / "dg.log").open("w")
    server = subprocess.Popen(
        [Path(sys.executable).parent / "dg", "dev", "--port", str(port)],
        cwd=project.home, env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    family = [psutil.Process(server.pid)]
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(url, server)
        yield url
        family += family[0].children(recursive=True)
        server.send_signal(signal.SIGINT)
        server.wait(PATIENCE)
    finally:
        for process in family:
            if process.is_running():
                process.kill()


def _wait_until_it_answers(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        assert server.poll() is None, f"dg dev ended with {server.returncode}"
        try:
            urllib.request.urlopen(f"{url}/server_info", timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.3)
    raise TimeoutError(url)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def shot(chromium: Browser, tmp_path: Path) -> Callable[[str], None]:
    """Takes a picture, kept in BROWSER_SHOTS where that is set."""
    folder = Path(os.environ.get("BROWSER_SHOTS") or tmp_path)
    return lambda name: chromium.screenshot(folder / f"{name}.png")


def test_the_lineage_shows_every_stage(chromium: Browser, page: str, shot: Callable[[str], None]) -> None:
    chromium.open(f"{page}/asset-groups")
    for stage in STAGES:
        chromium.wait_for(stage.asset, PATIENCE)
    shot("lineage")
