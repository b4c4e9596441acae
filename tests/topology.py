"""The deployment of docker/compose.yaml on this machine without Docker: the same commands, environments and files.

A container becomes a process, its port a free one of the loopback, its volume a folder; PostgreSQL is the machine's own
and moto stands in for the object store. What is read from the file cannot differ from it.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests import compose, objects
from tests.project import ROOT, Project

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer

PROGRAMS = Path(sys.executable).parent
PATIENCE = 180.0  # seconds; a busy machine starts these slowly
#: A service's address as the others write it, or as its own health check does.
ADDRESS = re.compile(r"\b(?:postgres|objects|mlflow|127\.0\.0\.1):(?P<port>\d{4})\b")


def postgres_programs() -> Path | None:
    """Where PostgreSQL's programs are, the newest first: Debian keeps them off PATH; None where there are none."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin")]
    folders.sort(key=lambda folder: float(folder.parent.name), reverse=True)
    found = shutil.which("initdb")
    folders += [Path(found).resolve().parent] if found else []
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Topology:
    """Every service of the file, started in the order in which Compose would."""

    def __init__(self, folder: Path, project: Project) -> None:
        self.secrets = compose.secrets()
        self.services: dict[str, dict[str, Any]] = compose.load(self.secrets)["services"]
        self.project = project
        self.dagster_home = folder / "dagster"
        (self.dagster_home / "storage").mkdir(parents=True)
        for name in ("dagster.yaml", "workspace.yaml", "make_buckets.py"):
            shutil.copy(ROOT / "docker" / name, self.dagster_home)
        self.ports = {port: _free_port() for port in ("5432", "7070", "5000", "4000", "3000")}
        self.logs = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._postgres_data: Path | None = None
        self._objects: ThreadedMotoServer | None = None

    def address(self, port: str) -> str:
        """Where what listens on a container's port listens here."""
        return f"127.0.0.1:{self.ports[port]}"

    def start(self) -> None:
        self._start_postgres()
        self._objects = objects.server(int(self.ports["7070"]))
        self.run("buckets")
        for name in ("mlflow", "code", "webserver", "daemon"):
            self._start(name)
            self._wait(name)

    def run(self, name: str, command: list[str] | None = None) -> str:
        """A command in a service's environment (its own where none is given); what it printed. It must succeed."""
        words = command or self.services[name]["command"]
        done = subprocess.run(
            self._words(words), env=self._environment(name), cwd=self._folder(name), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def health(self, name: str) -> str:
        """The service's own health check."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(name, command)

    def postgres(self, *command: str, stdin: str | None = None) -> str:
        """A program of PostgreSQL's as its superuser."""
        programs = postgres_programs()
        assert programs is not None
        done = subprocess.run(
            [programs / command[0], *command[1:]], env=os.environ | self._superuser(), input=stdin, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        """End everything and whatever it started; PostgreSQL last, while nobody speaks to it any more."""
        postgres = self._processes.pop("postgres", None)
        families = [
            [process, *process.children(recursive=True)]
            for process in (psutil.Process(child.pid) for child in self._processes.values() if child.poll() is None)
        ]
        for process, *_ in families:
            process.terminate()
        _, alive = psutil.wait_procs([process for family in families for process in family], timeout=20)
        for process in alive:
            process.kill()
        for child in filter(None, (*self._processes.values(), postgres)):
            child.terminate()
            child.wait(30)
        if self._objects is not None:
            self._objects.stop()
        if self._postgres_data is not None:
            shutil.rmtree(self._postgres_data.parent, ignore_errors=True)

    def _start_postgres(self) -> None:
        """As the image does: a cluster in an empty folder, then the file's script for the databases."""
        programs = postgres_programs()
        assert programs is not None
        # Outside pytest's folders, which only their owner may enter: PostgreSQL refuses to run as root.
        home = Path(tempfile.mkdtemp(prefix="dti-postgres-"))
        self._postgres_data = home / "data"
        user: dict[str, Any] = {}
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(home, account.pw_uid, account.pw_gid)
            user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        secret = home / "password"
        secret.write_text(self.secrets["POSTGRES_PASSWORD"])
        secret.chmod(0o644)
        data = str(self._postgres_data)
        subprocess.run(
            [programs / "initdb", "--pgdata", data, "--username=postgres", "--auth=scram-sha-256", f"--pwfile={secret}",
             "--encoding=UTF8", "--no-sync"],
            check=True, capture_output=True, cwd=home, **user,
        )  # fmt: skip
        with (self.logs / "postgres.log").open("wb") as log:
            self._processes["postgres"] = subprocess.Popen(
                [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", self.ports["5432"], "-k", str(home), "-F"],
                stdout=log, stderr=log, cwd=home, **user,
            )  # fmt: skip
        self._until("postgres", lambda: _answers(int(self.ports["5432"])))
        time.sleep(0.2)  # it takes connections a moment after it listens
        environment = self._environment("postgres") | self._superuser()
        subprocess.run([ROOT / "docker" / "make_databases.sh"], env=environment, check=True, capture_output=True)

    def _superuser(self) -> dict[str, str]:
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": self.ports["5432"],
            "PGUSER": "postgres",
            "PGPASSWORD": self.secrets["POSTGRES_PASSWORD"],
        }

    def _start(self, name: str) -> None:
        with (self.logs / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                self._words(self.services[name]["command"]),
                env=self._environment(name),
                cwd=self._folder(name),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, name: str) -> None:
        command = self.services[name]["command"]
        if "--port" in command:
            port = int(self.ports[command[command.index("--port") + 1]])
            self._until(name, lambda: _answers(port))

    def _until(self, name: str, ready: Any) -> None:
        until = time.monotonic() + PATIENCE
        while not ready():
            log = self.logs / f"{name}.log"
            assert self._processes[name].poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, f"{name} did not come up: {log.read_text()[-3000:]}"
            time.sleep(0.2)

    def _words(self, command: list[str]) -> list[str]:
        program, *rest = [self._here(word) for word in command]
        return [str(PROGRAMS / program), *rest]

    def _environment(self, name: str) -> dict[str, str]:
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("DAGSTER", "DTI", "MLFLOW", "AWS"))
        }
        own = {
            key: value if key == "MLFLOW_SERVER_ALLOWED_HOSTS" else self._here(value, host=key.endswith("_HOST"))
            for key, value in self.services[name].get("environment", {}).items()
        }
        image = {  # what the Dockerfile sets
            "DAGSTER_HOME": str(self.dagster_home),
            "DTI_HOME": str(self.project.home),
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GX_ANALYTICS_ENABLED": "false",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return kept | image | own

    def _folder(self, name: str) -> Path:
        return self.project.home if name == "code" else self.dagster_home

    def _here(self, text: str, host: bool = False) -> str:
        """A word of the file as it is on this machine."""
        if host or text == "0.0.0.0":
            return "127.0.0.1"
        text = ADDRESS.sub(lambda found: self.address(found["port"]), text)
        text = text.replace("/opt/dagster", str(self.dagster_home)).replace("/srv/dti", str(self.project.home))
        return self.ports.get(text, text)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
