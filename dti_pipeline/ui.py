"""``make ui``: starts Dagster and MLflow for a browser, and stops both."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dti_pipeline import config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import mlflow_page

HOST = "127.0.0.1"  # this machine only: neither page asks who is looking
READY_SECONDS = 180
STOP_SECONDS = 30


@dataclass
class Server:
    """A child process in a group of its own, which Ctrl-C does not reach."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, name: str, port: int, command: list[str], environment: dict[str, str], logs: Path) -> Server:
        log = logs / f"{name.lower()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        return cls(name, f"http://{HOST}:{port}", process, log)

    def wait_until_it_answers(self) -> None:
        """Return when the page answers. Raises InputError with the log's name when the process ends before."""
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            self.check()
            with suppress(OSError):
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            time.sleep(0.3)
        raise InputError(f"{self.name} did not answer at {self.url} within {READY_SECONDS} s: see {self.log}")

    def check(self) -> None:
        """Raise InputError when the process has ended."""
        if self.process.poll() is not None:
            raise InputError(f"{self.name} ended with code {self.process.returncode}: see {self.log}")

    def stop(self) -> None:
        """Interrupt it, then kill what is left of its group."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{self.name} does not end by itself", file=sys.stderr)
        with suppress(ProcessLookupError):  # nothing was left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port(wanted: int) -> int:
    """The first port from ``wanted`` on that nobody listens on."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise InputError(f"no free port from {wanted} to {wanted + 99}")


def servers(paths: Paths) -> list[Server]:
    """Start both; where ``tracking.uri`` names an MLflow server, only Dagster, whose links lead there."""
    programs = Path(sys.executable).parent
    logs = paths.home / ".dagster" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "DAGSTER_HOME": os.environ.get("DAGSTER_HOME") or str(Path.cwd()),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # halves start-up and memory; nothing here uses it
    }
    started = []
    store = config.load(paths.params).tracking.uri or paths.tracking_uri
    if store.startswith(("http://", "https://")):
        environment["DTI_MLFLOW_URL"] = store
    else:
        port = free_port(5000)
        command = [str(programs / "mlflow"), "ui", "--host", HOST, "--port", str(port)]
        # On a command line everybody can read a password.
        own = environment | {"MLFLOW_BACKEND_STORE_URI": store}
        started.append(Server.start("MLflow", port, [*command, "--workers", "1"], own, logs))
        environment["DTI_MLFLOW_URL"] = started[0].url
    port = free_port(3000)
    command = [str(programs / "dg"), "dev", "--host", HOST, "--port", str(port)]
    started.append(Server.start("Dagster", port, command, environment, logs))
    return started


def main() -> int:
    """Run until Ctrl-C (0), or until one of the two ends or does not come up (1)."""
    for number in (signal.SIGINT, signal.SIGTERM):  # even where a shell has SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    running: list[Server] = []
    try:
        paths = Paths.from_env()
        experiment = config.load(paths.params).tracking.experiment
        running = servers(paths)
        print("Starting, ten seconds or so ...", flush=True)
        for server in running:
            server.wait_until_it_answers()
        for server in reversed(running):
            print(f"  {server.name:<8} {_front_page(server, experiment)}", flush=True)
        print("Ctrl-C stops both.", flush=True)
        while True:
            for server in running:
                server.check()
            time.sleep(1)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopping ...", flush=True)
        return 0
    finally:
        for server in reversed(running):
            server.stop()


def _front_page(server: Server, experiment: str) -> str:
    """Dagster's address, or that of the trainings in MLflow, whose own front page is about language-model traces."""
    if server.name != "MLflow":
        return server.url
    query = urllib.parse.urlencode({"experiment_name": experiment})
    try:
        with urllib.request.urlopen(f"{server.url}/api/2.0/mlflow/experiments/get-by-name?{query}") as answer:
            return mlflow_page.address(server.url, json.load(answer)["experiment"]["experiment_id"])
    except urllib.error.HTTPError:
        return mlflow_page.address(server.url)  # nothing was trained yet


if __name__ == "__main__":
    sys.exit(main())
