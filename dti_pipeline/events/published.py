"""Where a published folder of events has its files: those of a log that is read as one, and those of its loads."""

from __future__ import annotations

from pathlib import Path

INTERACTIONS = "interactions.parquet"
QUARANTINE = "quarantine.parquet"
SPLITS = ("train", "validation", "test")
#: Split of a row that is no target, since an earlier load has it: it is there for those behind it.
CONTEXT = "context"


def load_folder(events: Path, number: int) -> Path:
    """Where the files of a load lie below a folder of events."""
    return events / "loads" / str(number) if number else events


def interactions(events: Path) -> list[Path]:
    """The files of a log's interactions, in the order in which their rows are counted. The first one need not be there;
    the others are, in a folder that is whole."""
    found = sorted((events / "loads").glob(f"*/{INTERACTIONS}"), key=lambda path: int(path.parent.name))
    return [events / INTERACTIONS, *found]
