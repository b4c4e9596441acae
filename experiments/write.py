"""The report of a study: results file, tables of its document, pictures, and their record in MLflow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dti_pipeline import artifacts, tracking
from dti_pipeline.config import Config
from dti_pipeline.evaluation.tables import MISSING, duration, markdown_table, number, signed
from dti_pipeline.evaluation.verdict import floor_label
from dti_pipeline.paths import Paths
from experiments import analyse, flat, pictures
from experiments.analyse import ROWS, Line, Row, lines
from experiments.grid import BASELINE, FACTS, Grid, known

#: A document's markers: a group's table, its validation AUC, its AUC by history, by item and by delay, a picture.
MARKED = re.compile(
    r"(<!-- (?P<kind>study|validation|histories|items|delays|figure): (?P<name>[\w-]+) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)
#: Facts that all lines of a table share, as its conditions say them.
SHARED = {
    "k": "k = {}",
    "n": "n = {}",
    "delay": "labels known after {}",
    "fixes": "fixes {}",
    "model": "model {}",
    "epochs": "{} epochs",
    "share": "{} of the training targets",
}
EVALUATED = ("AUC", "AUC streaming", "log loss", "ΔAUC [95 %]", "Δ to no fix [95 %]")
TRIAL = ("validation AUC", "best", "curve")
SPEED = ("train s", "targets/s", "tokens/s", "fewer tokens", "speed-up")
#: Columns of a table, at most, and those that go first where there would be more; the results file has them all.
WIDEST, LEAST = 8, ("tokens/s", "targets/s", "log loss", "AUC streaming")
SPLITS = {
    "user_order": "split by each user's order, not by time",
    "global_time": "split by global time",
    "column": "split as published",
}


def report(grid: Grid, work: Path, config: Config, paths: Paths) -> dict[str, Any]:
    """Write results, tables and pictures anew; record them where ``tracking.enabled``. Only new intervals, and floors
    of logs that no row has, need the runs: a clone makes the same document."""
    rows = analyse.gather(grid, work)
    analyse.derive(grid, rows, work)
    analyse.save(grid, rows)
    flat.write(grid, rows)
    drawn, files = [], {"": [grid.beside(grid.results) / ROWS]}
    if grid.pictures:
        folder = grid.beside(grid.pictures)
        drawn, files["pictures"] = pictures.draw_all(grid, rows, folder), sorted(folder.glob("study_*"))
    if grid.document and (path := grid.beside(grid.document)).is_file():
        artifacts.write_text(path, document(grid, rows, path.read_text(encoding="utf-8")))
    tracking.record_study(
        config, paths, [row | analyse.timed(row, rows) for row in rows],
        lambda own, group: group_tables(grid, own, group).strip(), files,
    )  # fmt: skip
    return {
        "results": grid.results,
        "rows": sum("error" not in row for row in rows),
        "errors": sum("error" in row for row in rows),
        "missing": len({run.digest for run in grid.runs} - {row["config"] for row in rows}),
        "pictures": drawn,
    }


def document(grid: Grid, rows: list[Row], text: str) -> str:
    """The text with everything between its markers made anew. InputError where one names nothing of the study."""

    def part(match: re.Match[str]) -> str:
        kind, name = match["kind"], match["name"]
        names = pictures.DRAWINGS if kind == "figure" else [*grid.group_names, *grid.others]
        known(f"{grid.document} asks for {kind}", [name], names)
        made = _picture(grid, name) if kind == "figure" else TABLES[kind](grid, rows, name)
        return f"{match[1]}\n{made or 'Not measured yet.'}\n\n{match[4]}"

    return MARKED.sub(part, text)


def _picture(grid: Grid, name: str) -> str:
    path = grid.beside(grid.pictures or "") / f"study_{name}.svg"
    if not grid.pictures or not grid.document or not path.is_file():
        return "Not drawn yet."
    said = (pictures.DRAWINGS[name].__doc__ or "").rstrip(".")
    return f"![{said}]({os.path.relpath(path, grid.beside(grid.document).parent)})"


def _logs(grid: Grid, rows: list[Row], name: str) -> Iterator[tuple[str, list[Row]]]:
    """A group's rows by log, the logs in the order of the grid."""
    own = analyse.of_group(grid, rows, name)
    for data_set in dict.fromkeys([*grid.data_sets, *(row["dataset"] for row in own)]):
        if of_log := [row for row in own if row["dataset"] == data_set]:
            yield data_set, of_log


def _lines_with(grid: Grid, rows: list[Row], name: str, fact: str) -> Iterator[tuple[str, list[Line]]]:
    """A group's lines that have a fact, by log; a log without any is left out."""
    for data_set, own in _logs(grid, rows, name):
        if shown := [line for line in lines(own) if line[fact]]:
            yield data_set, shown


def group_tables(grid: Grid, rows: list[Row], name: str) -> str:
    """A table for each log of a group, conditions above it, failures below it."""
    equal_seconds = any(group.equal == "seconds" for group in grid.group(name))
    parts = []
    for data_set, own in _logs(grid, rows, name):
        note = grid.data_sets[data_set].note if data_set in grid.data_sets else ""
        failed = [f"{row['paradigm']} k={row['k']} seed {row['seed']} failed." for row in own if "error" in row]
        table = _table(f"**{data_set}**{f' ({note})' if note else ''}", lines(own), rows, equal_seconds)
        parts += [*table, *failed]
    return "\n\n".join(parts)


def validation_tables(grid: Grid, rows: list[Row], name: str) -> str:
    """The AUC of validation targets, by which a recipe is chosen: a line a recipe, a column a log and delay.

    A data set of its own beside its log's, such as LOG-gap, is a recipe of that log: its line is called gap.
    """
    found: dict[str, dict[str, str]] = {}
    for data_set, own in _logs(grid, rows, name):
        log = grid.data_sets[data_set].log or data_set
        words = data_set.removeprefix(log).removeprefix("-")
        for line in lines(own):
            late = "" if line["delay"] is None else f", {duration(line['delay'])}"
            recipe = " ".join(part for part in (words, line["model"]) if part) or "chosen"
            found.setdefault(recipe, {})[log + late] = number(line.mean("validation_auc"))
    header = list(dict.fromkeys(column for figures in found.values() for column in figures))
    body = [[model, *(figures.get(column, MISSING) for column in header)] for model, figures in found.items()]
    return markdown_table(["", *header], body) if body else ""


def history_tables(grid: Grid, rows: list[Row], name: str) -> str:
    """AUC of a group's targets by how many earlier rows their user has, for each log of the group."""
    parts = []
    for data_set, shown in _lines_with(grid, rows, name, "auc_by_history"):
        buckets = {bucket for line in shown for bucket in line["auc_by_history"]}
        header = sorted(buckets, key=lambda bucket: int(bucket.rstrip("+").partition("-")[0]))
        body = []
        for line in shown:
            by_history = Line(tuple(row["auc_by_history"] for row in line.rows))
            label = " ".join(part for part in (f"`{line['paradigm']}`", line["fixes"]) if part)
            body.append([label, *(number(by_history.mean(bucket)) for bucket in header)])
        parts.append(f"**{data_set}**\n\n{markdown_table(['', *header], body)}")
    return "\n\n".join(parts)


def item_tables(grid: Grid, rows: list[Row], name: str) -> str:
    """UAUC of a group's models, and AUC by how many training targets an item has, for each log of the group."""
    parts = []
    for data_set, shown in _lines_with(grid, rows, name, "auc_by_item"):
        header = list(dict.fromkeys(bucket for line in shown for bucket in line["auc_by_item"]))
        facts = [fact for fact in FACTS if not _same(shown, fact)]
        body = []
        for line in shown:
            by_item = Line(tuple(row["auc_by_item"] for row in line.rows))
            told = " ".join(_fact(line, fact) for fact in facts)
            aucs = (number(by_item.mean(bucket)) for bucket in header)
            body.append([f"`{line['paradigm']}` {told}".strip(), number(line.mean("uauc")), *aucs])
        parts.append(f"**{data_set}**\n\n{markdown_table(['', 'UAUC', *header], body)}")
    return "\n\n".join(parts)


def delay_tables(grid: Grid, rows: list[Row], name: str) -> str:
    """AUC of a group's models and floors by the time after which a label is known, for each log of the group."""
    parts = []
    for data_set, own in _logs(grid, rows, name):
        delays = sorted({run.delay for run in grid.runs if name in run.groups}, key=lambda delay: delay or 0)
        found: dict[str, dict[float | None, float | None]] = {}
        for line in (shown := [line for line in lines(own) if line.values("auc")]):
            label = " ".join(part for part in (f"`{line['paradigm']}`", line["fixes"], line["model"]) if part)
            found.setdefault(label, {})[line["delay"]] = line.mean("auc")
        for line in shown:
            for floor, auc in (line["floors"] or {}).items():
                found.setdefault(f"floor: {floor_label(floor, line['n'])}", {})[line["delay"]] = auc
        if shown:
            said = _conditions(
                shown, [fact for fact in ("n", "fixes", "model") if len({one[fact] for one in shown}) == 1]
            )
            header = ["", *("at once" if delay is None else duration(delay) for delay in delays)]
            body = [[label, *(number(aucs.get(delay)) for delay in delays)] for label, aucs in found.items()]
            note = grid.data_sets[data_set].note if data_set in grid.data_sets else ""
            parts += [f"**{data_set}**{f' ({note})' if note else ''}: {'; '.join(said)}.", markdown_table(header, body)]
    return "\n\n".join(parts)


TABLES = {
    "study": group_tables,
    "validation": validation_tables,
    "histories": history_tables,
    "items": item_tables,
    "delays": delay_tables,
}


def _table(title: str, shown: list[Line], rows: list[Row], equal_seconds: bool) -> list[str]:
    """Conditions and table of one log's lines; nothing of none. Columns without any figure are left out."""
    if not shown:
        return []
    shown = sorted(shown, key=lambda line: (line["model"], line["n"], line["epochs"] or 0))  # then as declared
    same = [fact for fact in FACTS if _same(shown, fact)]
    facts = [fact for fact in FACTS if fact not in same]
    seeds = {len(line.rows) for line in shown}
    compared = ("auc_difference_equal_seconds" if equal_seconds else "auc_difference", "auc_difference_unfixed")
    trials = any(line["measure"] == "validation" for line in shown)
    evaluated = any(line.values("auc") for line in shown)
    header = [
        "",
        *facts,
        *(["seeds"] if len(seeds) > 1 else []),
        *(EVALUATED if evaluated else ()),
        *(TRIAL if trials else SPEED),
    ]
    body = []
    for line in shown:
        cells = [f"`{line['paradigm']}`", *(_fact(line, fact) for fact in facts)]
        cells += [str(len(line.rows))] if len(seeds) > 1 else []
        if evaluated:
            cells.append(_range(line.values("auc")))
            cells += [number(line.mean(column)) for column in ("auc_streaming", "log_loss")]
            cells += [_difference(line.values(column)) for column in compared]
        body.append([*cells, *(_learning(line) if trials else _speed(line, rows))])
    if evaluated or trials:
        found = {
            (floor_label(name, line["n"]), line["delay"]): (auc, line)
            for line in shown
            for name, auc in (line["floors"] or {}).items()
        }
        for (label, _), (auc, line) in found.items():
            own = [_fact(line, fact) if fact == "delay" else "" for fact in facts]  # a floor knows labels no sooner
            cells = [f"floor: {label}", *own, *([""] if len(seeds) > 1 else []), number(auc)]
            body.append([*cells, *[""] * (len(header) - len(cells))])
    kept = [0, *(i for i in range(1, len(header)) if any(cells[i] not in ("", MISSING) for cells in body))]
    for least in LEAST:
        if len(kept) > WIDEST:
            kept = [i for i in kept if header[i] != least]
    header, *body = ([cells[i] for i in kept] for cells in (header, *body))
    said = [*_conditions(shown, same), *(_timed(shown, rows) if "train s" in header else [])]
    if len(seeds) == 1:
        said.insert(0, "1 seed" if seeds == {1} else f"{min(seeds)} seeds")
    return [f"{title}: {'; '.join(said)}.", markdown_table(header, body)]


def _same(shown: Sequence[Line], fact: str) -> bool:
    """Whether all lines share a fact: k, where all but the sliding window do, whose k is always 1."""
    return len({line[fact] for line in shown if fact != "k" or line["paradigm"] != BASELINE}) <= 1


def _conditions(shown: Sequence[Line], same: Sequence[str]) -> list[str]:
    """Facts that all lines share, and the machines and commits they come from."""
    first, every = shown[0], Line(tuple(row for line in shown for row in line.rows))
    said = ["validation targets, in streaming prompts"] if first["measure"] == "validation" else []
    if first["test_targets"]:
        said.append(f"{first['test_targets']:,} test targets of {first['test_users']:,} users")
    last = max(shown, key=lambda line: line["paradigm"] != BASELINE)  # whose k is that of all but the baseline
    shared = [SHARED[fact].format(_fact(last, fact)) for fact in same if last[fact] not in (None, "")]
    said += ["1 epoch" if one == "1 epochs" else one for one in shared]
    workers = sorted(set(every.values("workers")))
    beside = "one at a time" if workers == [1] else f"{' and '.join(map(str, workers))} at a time"
    commits = ", ".join(sorted({commit[:10] for commit in every.values("commit")}))
    machines = sorted(set(every.values("hardware")))
    return [*said, SPLITS.get(first["split"], first["split"]), *machines, beside, f"commit {commits}"]


def _timed(shown: Sequence[Line], rows: list[Row]) -> list[str]:
    """The machines and commits of seconds that are taken from trainings alone on their machine."""
    beside = [row for line in shown for row in line.rows if not analyse.alone(row)]
    alone = [found for row in beside if (found := analyse.measured(row, rows)[0])]
    machines = sorted({found["hardware"] for found in alone})
    commits = sorted({commit[:10] for found in alone for commit in found.values("commit")})
    return [f"seconds: {', '.join(machines)}, commit {', '.join(commits)}"] if alone else []


def _learning(line: Line) -> list[str]:
    """Validation AUC at the end, the best point of the curve, and the curve, which is the mean of the seeds' curves."""
    curves = [[auc for _, auc in curve] for curve in line.values("learning") if curve]
    curve = [fmean(aucs) for aucs in zip(*curves, strict=True)]
    return [_range(line.values("validation_auc")), number(max(curve, default=None)), " ".join(map(number, curve))]


def _speed(line: Line, rows: list[Row]) -> list[str]:
    own = Line(tuple(row for row in line.rows if analyse.alone(row)) or ({},))
    rates = [_amount(own.mean(name)) for name in ("targets_per_second", "tokens_per_second")]
    ratios = [f"{value:.1f}x" if (value := line.mean(name)) else MISSING for name in ("fewer_tokens", "speedup")]
    return [_amount(analyse.mean_seconds(line, rows)), *rates, *ratios]


def _fact(line: Line, fact: str) -> str:
    value = line[fact]
    if fact == "delay" and value is not None:
        return duration(value)
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value or "")


def _range(values: Sequence[float]) -> str:
    """The mean, and the lowest and highest seed."""
    if not values:
        return MISSING
    return f"{fmean(values):.4f}" + (f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else "")


def _difference(found: Sequence[Mapping[str, Any]]) -> str:
    """The mean over seeds, and its interval; of one seed, that seed's."""
    if not found:
        return MISSING
    said = signed(fmean(one["mean"] for one in found))
    low, high = ("low", "high") if len(found) == 1 else ("seeds_low", "seeds_high")
    return said if found[0][low] is None else f"{said} [{found[0][low]:+.4f}, {found[0][high]:+.4f}]"


def _amount(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
