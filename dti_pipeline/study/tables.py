"""The study's tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from dti_pipeline.evaluation.tables import MISSING, number, signed
from dti_pipeline.evaluation.verdict import floor_label
from dti_pipeline.paths import PARADIGMS
from dti_pipeline.study.grid import FACTS, Grid
from dti_pipeline.study.rows import Row, of_seeds, pace, seconds


@dataclass(frozen=True)
class Line:
    """Runs that differ in nothing but their seed."""

    rows: tuple[Row, ...]

    def __getitem__(self, fact: str) -> Any:
        return self.rows[0].get(fact)

    def values(self, column: str) -> list[float]:
        return [row[column] for row in self.rows if row.get(column) is not None]

    def mean(self, column: str) -> float | None:
        found = self.values(column)
        return fmean(found) if found else None


def lines(rows: Iterable[Row]) -> list[Line]:
    """A line for each configuration, of all its seeds; failed rows left out."""
    return [Line(tuple(same)) for same in of_seeds(rows)]


def of_group(grid: Grid, rows: Iterable[Row], name: str) -> list[Row]:
    """The rows of a group; one run may belong to several."""
    if name in grid.others:
        return [row for row in rows if row["group"] == name]
    members = {run.digest for run in grid.runs if name in run.groups}
    return [row for row in rows if row["config"] in members]


def group_tables(grid: Grid, rows: list[Row], name: str) -> str:
    """A table for each log of a group, conditions above it, failures below it."""
    own = sorted(of_group(grid, rows, name), key=lambda row: _place(grid, row["dataset"]))
    if not own:
        return "\nNot measured yet.\n\n"
    parts = []
    for data_set, of_log in groupby(own, lambda row: row["dataset"]):
        note = grid.data_sets[data_set].note if data_set in grid.data_sets else ""
        parts.append(_table(data_set, note, list(of_log), rows, _equal_seconds(grid, name)))
    return "\n" + "\n\n".join(parts) + "\n\n"


def history_tables(grid: Grid, rows: list[Row], name: str) -> str:
    """AUC of a group's targets by how many earlier rows their user has, for each log of the group."""
    own = sorted(of_group(grid, rows, name), key=lambda row: _place(grid, row["dataset"]))
    parts = []
    for data_set, of_log in groupby(own, lambda row: row["dataset"]):
        shown = [line for line in lines(of_log) if line["auc_by_history"]]
        if not shown:
            continue
        buckets = list(dict.fromkeys(bucket for line in shown for bucket in line["auc_by_history"]))
        buckets.sort(key=lambda bucket: int(bucket.rstrip("+").partition("-")[0]))
        body = [["", *buckets], ["---", *["---:"] * len(buckets)]]
        for line in shown:
            each = [Line(tuple(row["auc_by_history"] for row in line.rows)).mean(bucket) for bucket in buckets]
            body.append(
                [" ".join(part for part in (f"`{line['paradigm']}`", line["fixes"]) if part), *map(number, each)]
            )
        parts.append(f"**{data_set}**\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in body))
    return "\n" + "\n\n".join(parts or ["Not measured yet."]) + "\n\n"


def _place(grid: Grid, data_set: str) -> int:
    names = list(grid.data_sets)
    return names.index(data_set) if data_set in names else len(names)


def _equal_seconds(grid: Grid, name: str) -> bool:
    return any(group.equal == "seconds" for group in grid.group(name))


def _table(data_set: str, note: str, own: list[Row], rows: list[Row], equal_seconds: bool) -> str:
    shown = sorted(lines(own), key=lambda line: (line["model"], line["n"], line["epochs"] or 0))  # then as declared
    same = [fact for fact in FACTS if len({line[fact] for line in shown}) == 1]
    trials = any(line["measure"] == "validation" for line in shown)
    judged = any(line.values("auc") for line in shown)
    facts = [fact for fact in FACTS if fact not in same]
    header = ["", *(fact.replace("max_targets", "targets") for fact in facts), "seeds"]
    if trials:
        header += ["validation AUC", "best", "curve"]
    else:
        header += ["AUC", "AUC streaming", "log loss", "gAUC", "ΔAUC [95 %]", "Δ to no fix [95 %]"] if judged else []
        header += ["train s", "targets/s", "tokens/s", "fewer tokens", "speed-up"]
    column = "auc_difference_equal_seconds" if equal_seconds else "auc_difference"
    body = []
    for line in shown:
        cells = [f"`{line['paradigm']}`", *(_fact(line[fact]) for fact in facts), str(len(line.rows))]
        if judged:
            cells += [_range(line.values("auc")), number(line.mean("auc_streaming")), number(line.mean("log_loss"))]
            cells.append(number(line.mean("gauc")))
            cells += [_difference([row.get(name) for row in line.rows]) for name in (column, "auc_difference_unfixed")]
        body.append([*cells, *(_learning(line) if trials else _speed(line, rows))])
    if judged or trials:
        body += _floors(shown, len(header), 1 + len(facts) + 1)
    kept = [0, *(i for i in range(1, len(header)) if any(cells[i] not in ("", MISSING) for cells in body))]
    shown_cells = [[cells[i] for i in kept] for cells in (header, ["---", *["---:"] * (len(header) - 1)], *body)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in shown_cells)
    failed = [f"{row['paradigm']} k={row['k']} seed {row['seed']} failed." for row in own if "error" in row]
    timed = _timed(shown, rows) if "train s" in shown_cells[0] else ""
    conditions = _conditions(data_set, note, shown, same, timed)
    return "\n\n".join([conditions, table, *failed]) if shown else "\n\n".join(failed)


def _timed(shown: Sequence[Line], rows: list[Row]) -> str:
    """What the seconds of trainings were measured on that had others beside them."""
    beside = [row for line in shown for row in line.rows if row.get("workers") != 1]
    paces = [found for row in beside if (found := pace(row, rows))]
    machines = sorted({found.hardware for found in paces})
    commits = sorted({commit[:10] for found in paces for commit in found.commits})
    return f"seconds: {', '.join(machines)}, commit {', '.join(commits)}" if paces else ""


def _conditions(data_set: str, note: str, shown: Sequence[Line], same: Sequence[str], timed: str) -> str:
    """One paragraph: what is the same for all lines, and what they were measured on."""
    first = shown[0]
    named = {"k": "k = {}", "n": "n = {}", "fixes": "fixes {}", "model": "model {}", "epochs": "{} epochs",
             "max_targets": "cut to {} training targets"}  # fmt: skip
    said = [named[fact].format(_fact(first[fact])) for fact in same if first[fact] not in (None, "")]
    said = ["1 epoch" if one == "1 epochs" else one for one in said]
    if first["test_targets"]:
        said.insert(0, f"{first['test_targets']:,} test targets of {first['test_users']:,} users")
    if first["measure"] == "validation":
        said.insert(0, "validation targets, in streaming prompts")
    rule = {"user_order": "split by each user's order, not by time", "global_time": "split by global time"}
    said.append(rule.get(first["split"], first["split"]))
    machines = sorted({row["hardware"] for line in shown for row in line.rows if row.get("hardware")})
    commits = sorted({row["commit"][:10] for line in shown for row in line.rows if row.get("commit")})
    beside = sorted({row["workers"] for line in shown for row in line.rows if row.get("workers")})
    said += machines
    said.append(f"{' and '.join(map(str, beside))} at a time" if beside != [1] else "one at a time")
    said.append(f"commit {', '.join(commits)}")
    said += [timed] if timed else []
    return f"**{data_set}**{f' ({note})' if note else ''}: {'; '.join(said)}."


def _learning(line: Line) -> list[str]:
    """Validation AUC at the end, the best point of the curve and the curve, which is the mean of the seeds' curves."""
    curves = [[auc for _, auc in curve] for row in line.rows if (curve := row.get("learning"))]
    curve = [fmean(aucs) for aucs in zip(*curves, strict=True)]
    return [_range(line.values("validation_auc")), number(max(curve, default=None)), " ".join(map(number, curve))]


def _speed(line: Line, rows: list[Row]) -> list[str]:
    alone = [found for row in line.rows if (found := seconds(row, rows)) is not None]
    own = Line(tuple(row for row in line.rows if row.get("workers") == 1))
    rates = [_amount(own.mean(name)) for name in ("targets_per_second", "tokens_per_second")]
    fewer, speedup = line.mean("fewer_tokens"), line.mean("speedup")
    times = [f"{value:.1f}x" if value else MISSING for value in (fewer, speedup)]
    return [_amount(fmean(alone) if alone else None), *rates, *times]


def _floors(shown: Sequence[Line], width: int, before: int) -> list[list[str]]:
    """Those that see the last n rows for each n of the table."""
    found = {floor_label(name, line["n"]): auc for line in shown for name, auc in (line["floors"] or {}).items()}
    return [
        [f"floor: {label}", *[""] * (before - 1), number(auc), *[""] * (width - before - 1)]
        for label, auc in found.items()
    ]


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value or "")


def _range(values: Sequence[float]) -> str:
    """The mean, and the lowest and highest seed."""
    if not values:
        return MISSING
    return f"{fmean(values):.4f}" + (f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else "")


def _difference(found: Sequence[Mapping[str, Any] | None]) -> str:
    """The mean over seeds, and its interval; of one seed, that seed's."""
    known = [one for one in found if one]
    if not known:
        return MISSING
    said = signed(fmean(one["mean"] for one in known))
    low, high = ("low", "high") if len(known) == 1 else ("seeds_low", "seeds_high")
    return said if known[0][low] is None else f"{said} [{known[0][low]:+.4f}, {known[0][high]:+.4f}]"


def _amount(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def order(paradigm: str) -> int:
    """Place in a list: the pipeline's paradigms, the baseline first, then others."""
    return PARADIGMS.index(paradigm) if paradigm in PARADIGMS else len(PARADIGMS)
