"""`dg dev` as a person meets it: runs launched and cancelled over its own interface, pages opened in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from dti_pipeline import artifacts, config, ui
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import BY_NAME, STAGES
from dti_pipeline.training.report import TrainReport
from tests.browser import Browser, browser
from tests.project import ROOT, Project

pytestmark = pytest.mark.slow
PATIENCE = 240.0  # seconds; a busy machine starts Dagster's processes slowly
ENDED = ("SUCCESS", "FAILURE", "CANCELED")


class Page:
    """A running `dg dev` on a project of its own."""

    def __init__(self, url: str, project: Project) -> None:
        self.url, self.project, self.paths = url, project, project.paths

    def ask(self, query: str, **variables: Any) -> Any:
        """The data of a GraphQL answer: what the page itself asks."""
        content = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found["errors"]
        return found["data"]

    def location(self) -> str:
        """The name of the one code location."""
        query = "{ repositoriesOrError { ... on RepositoryConnection { nodes { location { name } } } } }"
        (node,) = self.ask(query)["repositoriesOrError"]["nodes"]
        return node["location"]["name"]

    def launch(self, job: str, assets: list[str], paradigm: str, overrides: list[str]) -> str:
        """The id of a new run."""
        repository = self.ask(
            "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
        )
        (node,) = repository["repositoriesOrError"]["nodes"]
        selector = {
            "repositoryName": node["name"],
            "repositoryLocationName": node["location"]["name"],
            "jobName": job,
            "assetSelection": [{"path": [asset]} for asset in assets],
        }
        answer = self.ask(
            """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
                 __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }""",
            params={
                "selector": selector,
                "runConfigData": {"resources": {"project": {"config": {"overrides": overrides}}}},
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": paradigm}]},
            },
        )["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def terminate(self, run: str) -> None:
        """What the button Terminate does."""
        mutation = "mutation ($id: String!) { terminateRun(runId: $id) { __typename } }"
        assert self.ask(mutation, id=run)["terminateRun"]["__typename"] == "TerminateRunSuccess"

    def runs(self, **tags: str) -> list[str]:
        """The ids of the runs with these tags."""
        query = """query ($tags: [ExecutionTag!]) { runsOrError(filter: {tags: $tags}) {
                     ... on Runs { results { runId } } } }"""
        wanted = [{"key": key, "value": value} for key, value in tags.items()]
        return [run["runId"] for run in self.ask(query, tags=wanted)["runsOrError"]["results"]]

    def status(self, run: str) -> str:
        return self.ask("query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run)["runOrError"][
            "status"
        ]

    def backfill(self, backfill: str) -> str:
        """Its status."""
        query = """query ($id: String!) { partitionBackfillOrError(backfillId: $id) {
                     ... on PartitionBackfill { status } } }"""
        return self.ask(query, id=backfill)["partitionBackfillOrError"]["status"]

    def assets(self, run: str) -> set[str]:
        """What a run was asked to make."""
        query = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { assetSelection { path } } } }"
        return {key["path"][0] for key in self.ask(query, id=run)["runOrError"]["assetSelection"]}

    def log(self, run: str) -> str:
        query = """query ($id: ID!) { logsForRun(runId: $id) { ... on EventConnection {
                     events { ... on MessageEvent { message } } } } }"""
        return "\n".join(event["message"] for event in self.ask(query, id=run)["logsForRun"]["events"])

    def wait(self, what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if answer := what():
                return answer
            time.sleep(0.3)
        raise TimeoutError(what)

    def wait_until_ended(self, run: str) -> str:
        return self.wait(lambda: (status := self.status(run)) in ENDED and status)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Page]:
    project = Project(tmp_path_factory.mktemp("project"))
    project.params["paradigms"] = ["dti"]
    shutil.copy(empty_store, project.paths.home / "mlflow.db")
    # Two processes through torchrun, and steps enough to be cancelled among.
    training = {"targets_per_step": 32, "processes": 2, "epochs": 20, "checkpoint_seconds": 1}
    project.set({"training": training, "validation": {"required": False}})
    port = ui.free_port(3600)
    (project.home / "dti_pipeline").symlink_to(ROOT / "dti_pipeline")
    programs = Path(sys.executable).parent
    environment = os.environ | {
        "DAGSTER_HOME": str(project.home),
        "DTI_HOME": str(project.home),
        "CUDA_VISIBLE_DEVICES": "",
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    with (project.home / "dg.log").open("w") as log:
        server = subprocess.Popen(
            [programs / "dg", "dev", "--port", str(port)],
            cwd=project.home, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    family = [psutil.Process(server.pid)]
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(url, server)
        yield Page(url, project)
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


# A training that is cancelled.


def trainers(paths: Paths) -> list[psutil.Process]:
    """Every process of a training in this home: torchrun and what it started."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        command, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        if "dti_pipeline.defs.train_process" in command and environment.get("DTI_HOME") == str(paths.home):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def cancelled(page: Page) -> str:
    """The id of a run whose training, in two processes, was cancelled from Dagster."""
    settings = config.load(page.paths.params)
    for name in ("synth", "ingest", "tokenize"):
        BY_NAME[name].run(settings, page.paths)
    BY_NAME["pack"].run(settings, page.paths, "dti")
    run = page.launch("one_paradigm", ["model"], "dti", ["training.checkpoint_seconds=600"])
    page.wait(lambda: "targets/s" in page.log(run) or page.status(run) in ENDED)
    assert len(trainers(page.paths)) == 3, page.log(run)  # torchrun and two processes
    page.terminate(run)
    assert page.wait_until_ended(run) == "CANCELED", page.log(run)
    assert trainers(page.paths) == []
    assert len(list(page.paths.checkpoints("dti").glob("*/step-*"))) == 1, "the one of the cancelled, none before"
    assert not page.paths.model("dti").exists()
    return run


# The whole comparison, which goes on with that training.


@pytest.fixture(scope="module")
def compared(page: Page, cancelled: str) -> str:
    """The id of a backfill of the whole graph, requested by the command and finished by Dagster's daemon."""
    said = page.project.run(sys.executable, "-m", "dti_pipeline.defs.whole_comparison", DTI_HOME=str(page.paths.home))
    backfill = re.search(r"Backfill (\w+) of dti:", said)
    assert backfill is not None, said
    page.wait(lambda: page.backfill(backfill[1]) not in ("REQUESTED", "COMPLETING"), 3 * PATIENCE)
    runs = page.runs(**{"dagster/backfill": backfill[1]})
    assert page.backfill(backfill[1]) == "COMPLETED_SUCCESS", "\n".join(map(page.log, runs))
    return backfill[1]


def training_of(page: Page, backfill: str) -> str:
    """The id of the backfill's run that trains."""
    return next(run for run in page.runs(**{"dagster/backfill": backfill}) if "model" in page.assets(run))


def test_a_cancelled_training_saves_leaves_no_process_and_goes_on(page: Page, cancelled: str, compared: str) -> None:
    """Of the same data, though every stage before it has run again."""
    assert "saving a checkpoint" in page.log(cancelled)
    assert "going on after" in page.log(training_of(page, compared))
    assert not page.paths.checkpoints("dti").exists()
    report = artifacts.read(page.paths.model("dti"), "train", TrainReport).report
    assert report.world_size == 2
    assert f"{report.targets:,} targets to see" in page.log(cancelled)
    store = MlflowClient(page.paths.tracking_uri)
    experiment = store.get_experiment_by_name("dti").experiment_id
    (tracked,) = store.search_runs([experiment], "tags.paradigm != ''")
    assert tracked.info.run_id == report.mlflow_run_id
    assert tracked.info.status == "FINISHED"
    steps = [point.step for point in store.get_metric_history(tracked.info.run_id, "train/loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == report.targets


def test_the_whole_comparison_is_three_runs_one_after_the_other(page: Page, compared: str) -> None:
    runs = page.runs(**{"dagster/backfill": compared})
    assert [page.assets(run) for run in reversed(runs)] == [
        {"log", "events", "checks", "tokens"},
        {"shards", "model", "evaluation"},
        {"comparison"},
    ]
    assert {page.status(run) for run in runs} == {"SUCCESS"}
    assert set(json.loads(page.paths.comparison_file("json").read_text())["paradigms"]) == {"dti"}


# The pages.


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def shot(chromium: Browser, tmp_path: Path) -> Callable[[str], None]:
    """Takes a picture, kept in BROWSER_SHOTS where that is set."""
    folder = Path(os.environ.get("BROWSER_SHOTS") or tmp_path)
    return lambda name: chromium.screenshot(folder / f"{name}.png")


@pytest.mark.browser
def test_the_lineage_shows_every_stage(chromium: Browser, page: Page, shot: Callable[[str], None]) -> None:
    chromium.open(f"{page.url}/locations/{page.location()}/asset-groups/dti")
    for stage in STAGES:
        chromium.wait_for(stage.asset, PATIENCE)
    shot("lineage")


@pytest.mark.browser
def test_what_can_run_by_itself_is_listed(chromium: Browser, page: Page, shot: Callable[[str], None]) -> None:
    chromium.open(f"{page.url}/automation")
    for name in ("new_log_files", "nightly", "refresh_cheap_stages"):
        chromium.wait_for(name)
    shot("automation")


@pytest.mark.browser
def test_the_whole_comparison_is_watched_and_read(
    chromium: Browser, page: Page, shot: Callable[[str], None], compared: str
) -> None:
    """The backfill with its runs, the progress of a training, the comparison's figures."""
    chromium.open(f"{page.url}/runs/b/{compared}?tab=runs")
    chromium.wait_for("Succeeded")
    chromium.open(f"{page.url}/runs/{training_of(page, compared)}")
    chromium.wait_for("targets/s", PATIENCE)
    shot("progress")
    chromium.open(f"{page.url}/assets/comparison")
    chromium.wait_for("auc: dti")
    auc = json.loads(page.paths.comparison_file("json").read_text())["paradigms"]["dti"]["auc"]
    chromium.wait_for(f"{auc:.6f}"[:-1])
    shot("comparison")
    chromium.open(f"{page.url}/assets/model?view=partitions&partition=dti")
    chromium.wait_for("mask")
    chromium.wait_for("targets_per_second")
    shot("model")
