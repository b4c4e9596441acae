"""What do MLflow, Dagster and DVC add to a run?

The same small comparison (two paradigms, from the synthetic log to the tables) through each entry point in turn, every
time in an empty project of its own: `dti run` without records, `dti run` with MLflow, `dvc repro`, and Dagster's whole
graph, the last two without MLflow, so that each is charged for itself. Wall and CPU time of all processes, medians.
Nearly all of it is start-up and does not grow with the log: `--scale` makes the run longer and the percentage smaller.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lib.harness import ROOT, dti, parser, publish, run
from dti_pipeline import config

FILES = ("pyproject.toml", "dagster.yaml", "dvc.yaml", ".gitignore", ".dvcignore")
DVC = Path(sys.executable).parent / "dvc"
ENTRY_POINTS: dict[str, tuple[list[str], bool]] = {  # the command, and whether MLflow keeps records
    "dti run": (dti("run"), False),
    "dti run, MLflow on": (dti("run"), True),
    "dvc repro": ([str(DVC), "repro", "--quiet"], False),
    "Dagster, whole graph": ([sys.executable, "-m", "dti_pipeline.defs.demo"], False),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=2)
    options.add_argument("--scale", type=float, default=1.0, help="of the log: 1 is 100 users, 4 the demo's 400")
    given = options.parse_args()
    taken: dict[str, list[tuple[float, float]]] = {entry: [] for entry in ENTRY_POINTS}
    for _ in range(given.repeats):
        for entry, (command, tracked) in ENTRY_POINTS.items():
            with tempfile.TemporaryDirectory() as scratch:
                home = project(Path(scratch), given.scale, tracked)
                wall, cpu, _ = run(command, home, DAGSTER_HOME=str(home), OMP_NUM_THREADS="1")
                taken[entry].append((wall, cpu))
    publish("orchestration", table(taken, given.scale), given)


def table(taken: dict[str, list[tuple[float, float]]], scale: float) -> list[dict[str, Any]]:
    medians = {
        entry: [statistics.median(column) for column in zip(*times, strict=True)] for entry, times in taken.items()
    }
    plain_wall, plain_cpu = medians["dti run"]
    return [
        {
            "entry_point": entry,
            "users": round(100 * scale),
            "seconds": round(wall, 1),
            "cpu_seconds": round(cpu, 1),
            "added_cpu_seconds": round(cpu - plain_cpu, 1),
            "added_percent": round(100 * (wall / plain_wall - 1), 1),
            "added_cpu_percent": round(100 * (cpu / plain_cpu - 1), 1),
        }
        for entry, (wall, cpu) in medians.items()
    ]


def project(home: Path, scale: float, tracked: bool) -> Path:
    """A clone's own files without its code, under git as DVC wants it, with a small params.yaml."""
    for name in FILES:
        shutil.copy(ROOT / name, home)
    shutil.copytree(ROOT / ".dvc", home / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    params = config.to_plain(config.load(ROOT / "params.yaml"))
    params["synth"]["users"] = round(100 * scale)
    params["training"]["epochs"] = 1.0
    params["tracking"]["enabled"] = tracked
    (home / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "start"]):
        subprocess.run([*git, *command], cwd=home, check=True)
    return home


if __name__ == "__main__":
    main()
