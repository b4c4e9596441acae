"""``dti study``: its options as work to do, and the reports that it prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dti_pipeline import locks
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from experiments import grid as grids
from experiments import schedule

Report = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """The command's options."""

    grid: Path
    work: Path
    only: tuple[str, ...] = ()
    workers: int = 1
    budget: float | None = None
    logs: Mapping[str, Path] = field(default_factory=dict)


def logs(given: Iterable[str]) -> dict[str, Path]:
    """``NAME=PATH`` options as a mapping."""
    found = {}
    for one in given:
        name, separator, path = one.partition("=")
        if not separator or not Path(path).exists():
            raise InputError(f"--log {one!r} must read NAME=PATH, of a file or folder that exists")
        found[name] = Path(path).resolve()
    return found


def show(task: Task) -> Report:
    """``--list``: every run with its state and cost."""
    grid = grids.load(task.grid)
    found = list(schedule.listing(grid, task.work, grid.chosen(task.only)))
    left = [row for row in found if row["state"] != "done"]
    return {
        "runs": found,
        "left": len(left),
        "tokens_left": sum(row["tokens"] or 0 for row in left),
        "seconds_left": round(sum(row["seconds"] or 0 for row in left)),
    }


def prepare(task: Task, paths: Paths) -> Report:
    """``--prepare``: the tokens of every log that the chosen runs need."""
    grid = grids.load(task.grid)
    names = schedule.prepare(grid, task.work, grid.chosen(task.only), task.logs, paths)
    return {"prepared": names, "work": str(task.work)}


def make(task: Task, config: Config, paths: Paths, reported: bool | None, say: schedule.Say) -> Report:
    """Make the runs that are left, then report; ``reported``: True for the report alone, False for the runs alone."""
    grid = grids.load(task.grid)
    runs = grid.chosen(task.only)
    failed = 0
    with locks.alone(task.work / "study"):
        if not reported:
            schedule.prepare(grid, task.work, runs, task.logs, paths)
            failed = schedule.execute(grid, task.work, runs, task.workers, task.budget, say)
        if reported is False:
            return {"failed": failed}
        from experiments.write import report

        return report(grid, task.work, config, paths) | {"failed": failed}


def text(report: Report) -> str:
    """A report to read."""
    if "runs" not in report:
        plain = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in report.items()}
        return "\n".join(f"{key.replace('_', ' '):<12} {value}" for key, value in plain.items())
    rule = "-" * 100
    lines = [f"{'state':<6} {'config':<12} {'M tokens':>9} {'seconds':>8}  run (groups)", rule]
    for row in report["runs"]:
        tokens = f"{row['tokens'] / 1e6:.2f}" if row["tokens"] else "?"
        seconds = f"{row['seconds']:.0f}" if row["seconds"] else "?"
        lines.append(f"{row['state']:<6} {row['config']:<12} {tokens:>9} {seconds:>8}  {row['run']} ({row['group']})")
        if row["error"]:
            lines.append(f"       {row['error']}")
    known = f", {report['seconds_left']:,} s of those whose speed is known" if report["seconds_left"] else ""
    return "\n".join([*lines, rule, f"{report['left']} runs left, {report['tokens_left'] / 1e6:,.1f} M tokens{known}"])
