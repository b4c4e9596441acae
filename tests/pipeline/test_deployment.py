"""The deployment's files, as far as they can be judged without Docker; test_topology.py runs what they say."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import compose
from tests.pipeline.test_environment import pins, spelling
from tests.project import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"
TOOLS = Path(sys.executable).parent
DEPLOYED = compose.load(compose.secrets())
SERVICES: dict[str, dict[str, Any]] = DEPLOYED["services"]
LASTING = sorted(set(SERVICES) - {"buckets"})


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Each stage of the Dockerfile with what it starts from and its instructions, those it inherits before its own."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            source, _, name = rest.partition(" AS ")
            found[name] = list(found.get(source, [("FROM", source)]))
        else:
            found[name].append((word, rest))
    return found


def test_the_compose_file_satisfies_the_specifications_schema() -> None:
    checker = [TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*checker, compose.FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_linter_has_nothing_to_say_of_the_dockerfile() -> None:
    done = subprocess.run([TOOLS / "hadolint", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_part_of_a_deployment_is_there() -> None:
    assert set(SERVICES) == {
        "postgres", "objects", "buckets", "mlflow", "training", "code", "serving", "webserver", "daemon",
    }  # fmt: skip
    assert [name for name in SERVICES if "devices" in str(SERVICES[name].get("deploy"))] == ["training"]
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"training": ["gpu"], "code": ["cpu"], "serving": ["serve"]}
    assert compose.example()["COMPOSE_PROFILES"] == "gpu"


@pytest.mark.parametrize("name", LASTING)
def test_a_service_is_watched_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["healthcheck"]["start_period"]
    assert service["cap_drop"] == ["ALL"]
    assert not {"privileged", "network_mode", "pid"} & set(service)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_what_it_needs(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        lasting = needed in LASTING
        assert how["condition"] == ("service_healthy" if lasting else "service_completed_successfully")
        # A service that a profile leaves out cannot be waited for.
        assert how.get("required", True) == ("profiles" not in SERVICES[needed])


def test_runs_that_a_container_took_down_are_found_by_the_next_one() -> None:
    # defs/processes.py knows a run's process by its host's name; a container's own name is new each time.
    assert {name: service["hostname"] for name, service in SERVICES.items() if "hostname" in service} == {
        "training": "code",
        "code": "code",
    }


def test_only_this_host_is_let_in() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"webserver", "mlflow", "objects", "serving"}
    for ports in published.values():
        for port in ports:
            assert port.startswith("127.0.0.1:"), port


def test_a_secret_has_no_default() -> None:
    secret = re.compile(r"PASSWORD|SECRET|KEY|TOKEN")
    used = {found["name"]: found["rule"] for found in compose.VARIABLE.finditer(compose.FILE.read_text())}
    assert {name for name, rule in used.items() if rule == ":?"} == {name for name in used if secret.search(name)}
    assert {name for name in used if secret.search(name)} == set(compose.secrets())
    for missing in compose.secrets():
        with pytest.raises(compose.Unset, match=missing):
            compose.load({name: value for name, value in compose.secrets().items() if name != missing})


def test_no_password_is_written_down() -> None:
    files = [path for path in (ROOT / "docker").iterdir() if path.is_file()]
    tracked = subprocess.run(["git", "check-ignore", "docker/.env"], cwd=ROOT, capture_output=True, check=False)
    assert tracked.returncode == 0, "docker/.env is not ignored by git"
    for path in files:
        for line in path.read_text().splitlines():
            assert not re.search(r"(password|secret)\w*\s*[:=]\s*[\"']?[a-z0-9]+[\"']?$", line, re.IGNORECASE), line


def test_what_the_example_explains_is_what_the_file_reads() -> None:
    used = {found["name"] for found in compose.VARIABLE.finditer(compose.FILE.read_text())}
    explained = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", compose.EXAMPLE.read_text(), re.MULTILINE))
    assert explained == used | {"COMPOSE_PROFILES"}


def test_what_must_survive_is_on_a_named_volume() -> None:
    mounted = {
        source: target
        for service in SERVICES.values()
        for source, target, *_ in (volume.split(":") for volume in service.get("volumes", []))
        if not source.startswith(".")
    }
    assert mounted == {
        "postgres-data": "/var/lib/postgresql/data",
        "objects-data": "/data",
        "project": "/srv/dti",
        "dagster-storage": "/opt/dagster/storage",
    }
    assert set(DEPLOYED["volumes"]) == set(mounted)


def test_what_is_mounted_from_the_clone_is_there_and_read_only() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source, _, mode = (*volume.split(":"), "")[:3]
            if source.startswith("."):
                assert (compose.FILE.parent / source).is_file(), volume
                assert mode == "ro", volume


def test_every_image_is_pinned() -> None:
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    foreign = {base for base in bases if base not in stages()}
    foreign |= {service["image"] for service in SERVICES.values() if "build" not in service}
    assert foreign == {"python:3.11.15-slim-bookworm", "postgres:17.10-bookworm", "versity/versitygw:v1.8.0"}


def test_every_target_is_a_stage_that_runs_as_nobody_special_and_says_how_it_is() -> None:
    wanted = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    assert wanted == {"services", "cpu", "cuda"}
    for target in wanted:
        words = dict(stages()[target])  # the last of each kind
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", words["USER"]), target  # by number: Kubernetes asks for it
        assert "CMD [" in words["HEALTHCHECK"]


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    copied = [
        source
        for word, rest in instructions()
        if word == "COPY" and "--from=" not in rest
        for source in shlex.split(rest)[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in let_in), f"{source} is left out by .dockerignore"
    assert set(let_in) == set(copied), "what nothing copies is let in"
    for service in SERVICES.values():
        if "build" in service:
            assert (compose.FILE.parent / service["build"]["context"]).resolve() == ROOT


def test_images_hold_the_versions_that_are_tested() -> None:
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    pinned = pins("project.txt")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in installs:
        for part in re.findall(r"pip install ([^&]*)", command):
            words = [word for word in shlex.split(re.sub(r"\$\{[^}]*\}", "", part)) if not word.startswith("-")]
            if "/wheels/*.whl" in words:
                continue
            assert words[0] == "requirements/project.txt", part  # what follows --constraint
            for name in words[1:]:
                asked = re.fullmatch(r"\.\[(.*)\]", name)
                assert set(asked[1].split(",")) <= set(extras) if asked else spelling(name) in pinned, name


def test_a_server_s_program_is_in_its_image() -> None:
    # What starts a service or asks for its health is a program of a package that its image installs.
    owners = {"dagster-webserver": "dagster-webserver", "dagster-daemon": "dagster-webserver", "mlflow": "mlflow"}
    (install,) = [rest for _, rest in stages()["services-libraries"] if "pip install" in rest]
    for name, service in SERVICES.items():
        if service["image"].endswith(":services"):
            for command in (service["command"], service.get("healthcheck", {}).get("test", ["", "python"])[1:]):
                assert command[0] == "python" or owners[command[0]] in install.split(), name
    assert (ROOT / "docker" / SERVICES["buckets"]["command"][1]).is_file()


def test_the_deployment_s_instance_differs_from_a_clone_s_in_storage_only() -> None:
    own, deployed = (yaml.safe_load((ROOT / name).read_text()) for name in ("dagster.yaml", "docker/dagster.yaml"))
    places = {"storage", "local_artifact_storage", "compute_logs"}
    assert {key: value for key, value in own.items() if key not in places} == {
        key: value for key, value in deployed.items() if key not in places
    }


def test_every_process_is_told_what_its_configuration_asks_for() -> None:
    files = [(ROOT / "docker" / name).read_text() for name in ("dagster.yaml", "workspace.yaml")]
    asked = set(re.findall(r"env: (\w+)", "\n".join(files)))
    assert asked
    for name in ("webserver", "daemon", "code", "training"):
        assert asked <= set(SERVICES[name]["environment"]), name
