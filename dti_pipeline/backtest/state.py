"""What is kept of finished days: a backtest that was killed, or whose log has changed, goes on from there."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dti_pipeline import artifacts
from dti_pipeline.backtest.days import Days
from dti_pipeline.backtest.report import Day
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.packing.reader import Rows, split
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths
from dti_pipeline.plain import from_plain, to_plain

#: Of a finished day, beside its checkpoint.
FILE = "day.json"
#: Tokens that a digest reads at a time.
BATCH = 1 << 20


@dataclass(frozen=True)
class States:
    """A folder for each day, under a fingerprint of all that shapes the numbers but the log's rows."""

    folder: Path

    @classmethod
    def of(cls, config: Config, paths: Paths, paradigm: str, store: TokenStore) -> States:
        sections = config.sections("packing", "model", "training", "backtest")
        for key in ("late_days", "paradigms"):  # how much is kept, and which others there are, changes no number
            del sections["backtest"][key]
        facts = [sections, config.split.min_history, store.vocabulary, store.special, store.prefix.tolist()]
        content = json.dumps(facts, sort_keys=True)
        return cls(paths.backtest_states(paradigm) / hashlib.md5(content.encode()).hexdigest()[:12])

    def begun(self) -> int | None:
        """The first finished day, of any paradigm under this configuration: they share their days."""
        found = self.folder.parent.parent.glob(f"*/{self.folder.name}/day-*/{FILE}")
        return min((_number(path.parent) for path in found), default=None)

    def reached(self, days: Days) -> int:
        """The first of some days that is not finished."""
        return next((day for day in range(days.first, days.last) if not (self.of_day(day) / FILE).is_file()), days.last)

    def of_day(self, day: int) -> Path:
        return self.folder / f"day-{day}"

    def finished(self, day: int) -> tuple[str, Day] | None:
        """Digest and figures of a finished day; None of another one. Raises InputError for damaged ones."""
        path = self.of_day(day) / FILE
        if not path.is_file():
            return None
        try:
            content = artifacts.read_sealed(path, {"digest", "day"})
        except ValueError as error:
            raise InputError(f"{error}: remove {self.folder} and run `dti backtest` again") from error
        return content["digest"], from_plain(Day, content["day"])

    def finish(self, day: int, digest: str, made: Day) -> None:
        """Note that a day is finished: the last that is written of it."""
        artifacts.write_json(self.of_day(day) / FILE, artifacts.sealed({"digest": digest, "day": to_plain(made)}))

    def has_weights(self, day: int) -> bool:
        return any(self.of_day(day).glob("step-*"))

    def drop_weights(self, day: int) -> None:
        """Of a day and all before it; their figures stay."""
        for one, path in self._days():
            for weights in path.glob("*step-*") if one <= day else ():
                shutil.rmtree(weights)

    def begin_again(self, day: int) -> None:
        """Forget a day and all after it."""
        for one, path in self._days():
            if one >= day:
                shutil.rmtree(path)

    def _days(self) -> list[tuple[int, Path]]:
        return [(_number(path), path) for path in self.folder.glob("day-*")]

    def remove_others(self) -> None:
        """Remove the states of other configurations."""
        for path in self.folder.parent.iterdir():
            if path != self.folder:
                shutil.rmtree(path)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("day-"))


def digest(*plans: Rows | None) -> str:
    """Of everything that a model reads and is told of these rows: the same for a log that changed elsewhere, though its
    rows have other numbers now. Cost: one assembly of them."""
    found = hashlib.md5()
    for rows in plans:
        found.update(b"plan")
        if rows is None:
            continue
        for part in split(np.arange(len(rows)), rows.height(BATCH)):
            layout = rows.assemble(part)
            for name, values in vars(layout).items():
                found.update((values if name != "target" else values >= 0).tobytes())
    return found.hexdigest()
