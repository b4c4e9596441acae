"""The deployment's services together: one materialisation, asked for on the web server, through all of them."""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
import psycopg2
import pytest

from dti_pipeline.pipeline import STAGES
from tests.project import Project
from tests.topology import PATIENCE, Topology, postgres_programs

pytestmark = [
    pytest.mark.long,
    pytest.mark.topology,
    pytest.mark.slow,
    pytest.mark.skipif(postgres_programs() is None, reason="PostgreSQL is not installed (Debian: postgresql)"),
]
LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on InvalidSubsetError { message }
    ... on PipelineNotFoundError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    project = Project(tmp_path_factory.mktemp("project"))
    started = Topology(tmp_path_factory.mktemp("deployment"), project)
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def run_id(topology: Topology) -> str:
    """A run of the whole graph for `dti`, asked for as Dagster's page does, when it has ended."""
    params = {
        "selector": {
            "repositoryLocationName": "dti",
            "repositoryName": "__repository__",
            "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": [stage.asset]} for stage in STAGES],
        },
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "dti"}]},
    }
    launched = graphql(topology, LAUNCH, params=params)["launchRun"]
    assert "run" in launched, launched
    identity: str = launched["run"]["runId"]
    until = time.monotonic() + 2 * PATIENCE
    status = ""
    while status not in ("SUCCESS", "FAILURE", "CANCELED"):
        assert time.monotonic() < until, status
        time.sleep(0.5)
        status = graphql(topology, STATUS, id=identity)["runOrError"]["status"]
    assert status == "SUCCESS", [(log.name, log.read_text()[-2000:]) for log in topology.logs.glob("*.log")]
    return identity


def graphql(topology: Topology, query: str, **variables: Any) -> Any:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://{topology.address('3000')}/graphql", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        content = json.load(answer)
    assert "errors" not in content, content
    return content["data"]


def rows(topology: Topology, database: str, query: str, *values: str) -> list[tuple[Any, ...]]:
    """What a database answers to its owner."""
    connection = psycopg2.connect(
        host="127.0.0.1", port=topology.ports["5432"], dbname=database, user=database,
        password=topology.secrets[f"{database.upper()}_POSTGRES_PASSWORD"],
    )  # fmt: skip
    try:
        with connection.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchall()
    finally:
        connection.close()


def test_dagster_s_records_are_in_postgresql(topology: Topology, run_id: str) -> None:
    assert rows(topology, "dagster", "SELECT status FROM runs WHERE run_id = %s", run_id) == [("SUCCESS",)]
    made = rows(topology, "dagster", "SELECT asset_key FROM asset_keys WHERE last_run_id = %s", run_id)
    assert {json.loads(key)[0] for (key,) in made} == {stage.asset for stage in STAGES}
    assert not list(topology.dagster_home.rglob("*.db"))


def test_mlflow_s_records_are_in_postgresql_and_its_files_in_the_bucket(topology: Topology, run_id: str) -> None:
    query = "SELECT r.run_uuid, r.status FROM runs r JOIN tags t USING (run_uuid) WHERE t.key = %s AND t.value = %s"
    ((training, status),) = rows(topology, "mlflow", query, "dagster.run_id", run_id)
    assert status == "FINISHED"
    assert not (topology.project.home / "mlflow.db").exists()
    store = boto3.client(
        "s3", endpoint_url=f"http://{topology.address('7070')}", aws_access_key_id="a", aws_secret_access_key="b"
    )
    stored = [item["Key"] for item in store.list_objects_v2(Bucket="mlflow")["Contents"]]
    model = topology.project.paths.model("dti")
    for weights in model.rglob("*.safetensors"):
        (copy,) = [key for key in stored if key.endswith(f"dti/{weights.relative_to(model)}")]
        assert store.get_object(Bucket="mlflow", Key=copy)["Body"].read() == weights.read_bytes()
    assert [key for key in stored if training in key], "the run's own files"


@pytest.mark.parametrize("name", ["code", "webserver", "mlflow", "daemon"])
def test_a_service_passes_its_own_health_check(topology: Topology, run_id: str, name: str) -> None:
    topology.health(name)


@pytest.mark.parametrize(("host", "code"), [("mlflow:5000", 200), ("localhost:5000", 200), ("elsewhere.example", 403)])
def test_mlflow_answers_to_the_names_it_was_given_and_to_no_other(topology: Topology, host: str, code: int) -> None:
    connection = http.client.HTTPConnection(topology.address("5000"), timeout=30)
    connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
    assert connection.getresponse().status == code
    connection.close()


def test_a_backup_comes_back(topology: Topology, run_id: str) -> None:
    # As docs/howto/backup.md has it: one dump for each database, restored into an empty one.
    for name in ("dagster", "mlflow"):
        dump = topology.postgres("pg_dump", "--dbname", name, "--no-owner")
        topology.postgres("createdb", "restored")
        topology.postgres("psql", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname", "restored", stdin=dump)
        count = "SELECT count(*) FROM runs"
        counts = [
            topology.postgres("psql", "--tuples-only", "--dbname", database, "--command", count)
            for database in (name, "restored")
        ]
        assert counts[0] == counts[1]
        assert int(counts[0]) >= 1
        topology.postgres("dropdb", "restored")
