"""What the stages made in a home, and how it is removed."""

from __future__ import annotations

import shutil
from pathlib import Path

from dti_pipeline import locks, pipeline
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths

#: What killed processes have left: outputs, what DuckDB put aside, and downloads.
DRAFTS = (".*.draft-*", ".*.download")


def clean(paths: Paths) -> list[str]:
    """Remove every output of a stage, drafts, checkpoints and caches; raw logs, run records and studies stay. Returns
    what was removed. Raises InputError, and removes nothing, while a process makes or reads an output."""
    stages = (*pipeline.STAGES, pipeline.BACKTEST)
    steps = [(stage, one) for stage in stages for one in (names() if stage.per_paradigm else (None,))]
    with locks.hold([stage.output(paths, one) for stage, one in steps], wait=False):
        outputs = [paths.resolve(out.format(paradigm=one)) for stage, one in steps for out in stage.outs]
        folders = [paths.home / folder for folder in ("data/raw", "data", "models")]
        drafts = [draft for folder in folders for pattern in DRAFTS for draft in folder.glob(pattern)]
        kept = [paths.home / "models" / name for name in (".checkpoints", ".backtest", ".registry")]
        locked = [path.with_name(f".{path.name}.lock") for path in outputs]
        cached = [paths.home / ".cache", paths.home / "data" / "shards", paths.accepted, paths.reports]
        found = [path for path in (*outputs, *drafts, *kept, *locked, *cached) if path.exists() or path.is_symlink()]
        for path in found:
            _remove(path)
    return [path.relative_to(paths.home).as_posix() for path in found if path not in locked]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
