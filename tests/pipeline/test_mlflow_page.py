"""MLflow's page as a researcher meets it, from plain `mlflow ui`: what the paper claims, at a glance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from dti_pipeline import ui
from dti_pipeline.tracking import mlflow_page
from tests.browser import Browser, browser
from tests.project import Project

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def compared(demonstrated: tuple[Project, str]) -> dict[str, Any]:
    return json.loads(demonstrated[0].paths.comparison_file("json").read_text())


@pytest.fixture(scope="module")
def runs(demonstrated: tuple[Project, str], compared: dict[str, Any]) -> list[Run]:
    """Of the two compared trainings."""
    store = MlflowClient(demonstrated[0].paths.tracking_uri)
    return [store.get_run(row["mlflow_run_id"]) for row in compared["paradigms"].values()]


@pytest.fixture(scope="module")
def page(demonstrated: tuple[Project, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow ui`, as the README starts it, in a project that has a comparison."""
    printed = tmp_path_factory.mktemp("mlflow") / "mlflow.log"  # not in the project: git would see it
    port = ui.free_port(5100)
    home = demonstrated[0].home
    command = [str(Path(sys.executable).parent / "mlflow"), "ui", "--backend-store-uri", "sqlite:///mlflow.db"]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with printed.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"],
            cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    server = ui.Server("MLflow", f"http://127.0.0.1:{port}", process, printed)
    family = [psutil.Process(process.pid)]
    try:
        server.wait_until_it_answers()
        family += family[0].children(recursive=True)
        yield server.url
    finally:
        server.stop()
        assert psutil.wait_procs(family, timeout=30)[1] == []


@pytest.fixture(scope="module")
def chromium(page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def shown(tab: Browser, runs: list[Run]) -> None:
    """Both paradigms are on the page, each with its AUC and its training time."""
    assert {run.data.tags["paradigm"] for run in runs} == {"sliding_window", "dti"}
    for run in runs:
        tab.wait_for(run.info.run_name)
        for metric in ("test/auc", "time/train_seconds"):
            tab.wait_for(str(run.data.metrics[metric])[:8])


def test_plain_mlflow_ui_leads_to_the_claim_in_four_clicks(page: str, chromium: Browser, runs: list[Run]) -> None:
    chromium.open(page)
    chromium.click("^Model training$", "label, button, span, div")
    chromium.click("^dti$")
    chromium.click("^Views$")
    chromium.click("^paradigms$", "[role=menuitem], [role=menuitemradio], li, a, button, span")
    shown(chromium, runs)


def test_the_printed_address_opens_on_the_claim(page: str, chromium: Browser, runs: list[Run]) -> None:
    chromium.open("about:blank")
    chromium.open(mlflow_page.address(page, runs[0].info.experiment_id))
    shown(chromium, runs)
    for column in ("test/auc", "comparison/auc_delta", "time/train_seconds", "comparison/speedup"):
        chromium.wait_for(column)
    (speedup,) = [run.data.metrics["comparison/speedup"] for run in runs if run.data.tags["paradigm"] == "dti"]
    chromium.wait_for(str(speedup)[:6])
    chromium.wait_for("Sort: test/auc")
    chromium.click("^time/train_seconds$", "[role=columnheader] *")
    chromium.wait_for("Sort: time/train_seconds")
    shown(chromium, runs)


def test_a_comparison_opens_with_its_table_and_leads_to_its_trainings(
    page: str, chromium: Browser, runs: list[Run], compared: dict[str, Any]
) -> None:
    parent, experiment = runs[0].data.tags["mlflow.parentRunId"], runs[0].info.experiment_id
    chromium.open("about:blank")
    chromium.open(f"{page}/#/experiments/{experiment}/runs/{parent}?workflowType=machine_learning")
    chromium.wait_for(compared["verdict"]["dti"])
    chromium.wait_for("floor: item rate")
    chromium.click("^dti n=5", "a")
    chromium.wait_for(compared["verdict"]["dti"])
