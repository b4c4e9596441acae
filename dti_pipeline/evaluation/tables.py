"""The comparison as a table to read: Markdown for a page, fixed width for a terminal."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dti_pipeline.evaluation import speed
from dti_pipeline.evaluation.report import Comparison, Delta, Figures, Speed
from dti_pipeline.evaluation.verdict import floor_label

COLUMNS = ("", "AUC", "AUC streaming", "gAUC", "NE", "train s", "speed-up", "ΔAUC")
WITH_INTERVAL = ("AUC", "ΔAUC")
#: The terminal table's columns, two spaces between them; and the lines of words below it.
WIDTHS = (16, 18, 6, 6, 6, 8, 8, 7)
WORDS = 110
MISSING = "–"


@dataclass(frozen=True)
class Row:
    """One line of the table; ``cells`` stand under ``COLUMNS`` in either form."""

    kind: str  # paradigm, floor or best
    cells: tuple[str, ...]  # with intervals
    short: tuple[str, ...]  # for a terminal


def render_markdown(comparison: Comparison, pictures: Iterable[str] = ()) -> str:
    """comparison.md. ``pictures`` are names of PNG files in the folder comparison/ beside it."""
    header = [f"{c} [{percent(comparison)}]" if c in WITH_INTERVAL else c for c in COLUMNS]
    parts = [
        f"# Comparison: {_as_text(comparison.dataset)}",
        facts(comparison),
        markdown_table(header, [row.cells for row in rows(comparison)]),
        "## Verdict",
        "\n".join(f"- **{name}**: {comparison.verdict[name]}" for name, _ in comparison.each()),
        *(f"> {note}" for note in comparison.notes),
    ]
    for title, table_header, lines in side_tables(comparison):
        parts += [f"## {title}", markdown_table(table_header, lines)]
    parts += [f"![{name.replace('_', ' ')}](comparison/{name}.png)" for name in pictures]
    parts += ["## Where to look next", "\n".join(f"- {line}" for line in where_next())]
    return "\n\n".join(parts) + "\n"


def _as_text(name: str) -> str:
    """A name that Markdown takes for nothing but text."""
    return re.sub(r"([\\`*_{}\[\]<>|#!&])", r"\\\1", name) if re.search(r"[\\`*{}\[\]<>|#!&]", name) else name


def render_text(comparison: Comparison) -> str:
    """The same for a terminal, at most 110 columns: table, verdicts, notes, where to look next."""
    width = sum(WIDTHS) + 2 * (len(WIDTHS) - 1)
    header = ("", f"AUC [{percent(comparison)}]", "stream", *COLUMNS[3:])
    lines = [*textwrap.wrap(facts(comparison), WORDS), "", _fixed(header)]
    for _, group in itertools.groupby(rows(comparison), key=lambda row: row.kind):
        lines += ["-" * width, *(_fixed(row.short) for row in group)]
    lines.append("")
    sentences = [f"{name}: {comparison.verdict[name]}" for name, _ in comparison.each()]
    for text in sentences + [f"Note: {note}" for note in comparison.notes]:
        lines += textwrap.wrap(text, WORDS, subsequent_indent="  ")
    lines += ["", "Where to look next:", *(f"  {line}" for line in where_next())]
    return "\n".join(lines).replace("`", "") + "\n"


def facts(comparison: Comparison) -> str:
    """One paragraph: the targets, the split, the intervals."""
    protocol = comparison.protocol
    sha, dash, dirty = (comparison.commit or "").partition("-")
    commit = f" Commit {sha[:10]}{dash}{dirty}." if sha else ""
    return (
        f"{when_known(comparison.delay)} {protocol.targets:,} {protocol.split} targets of {protocol.users:,} users,"
        " of whom"
        f" {protocol.users_in_training:,} were seen in training; {100 * protocol.click_rate:.1f} % clicks;"
        f" split by {protocol.rule.replace('_', ' ')}. AUC is of single-target prompts with"
        f" {protocol.context} context interactions, what a server sees; `streaming` scores the same targets in"
        " prompts of many. Intervals:"
        f" {percent(comparison)}, {protocol.bootstrap_samples:,} resamples of users; differences are paired."
        f" Trained on {comparison.hardware}.{commit}"
    )


def when_known(delay: float | None) -> str:
    """A sentence on when a label is known to later rows."""
    return f"Labels are known {'at once' if delay is None else f'after {duration(delay)}'}."


def duration(seconds: float) -> str:
    """Seconds in the largest unit that they fill."""
    units = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
    size, unit = next((pair for pair in units if seconds >= pair[0]), units[-1])
    return f"{seconds / size:g} {unit}{'' if seconds == size else 's'}"


def rows(comparison: Comparison) -> Iterator[Row]:
    """Paradigms, then floors, then the best possible where it is known."""
    for name, figures in comparison.each():
        delta = comparison.auc_delta.get(name, Delta(None, None, None))
        speedup = comparison.speedup.get(name)
        change = signed(delta.mean)
        wide = f"{change} {_interval((delta.ci_low, delta.ci_high), '+.4f')}".strip()
        faster = f"{speedup:.1f}x" if speedup else MISSING
        tail = (number(figures.auc_streaming), *_quality(figures), _amount(figures.train_seconds), faster)
        yield Row("paradigm", (f"`{name}`", _auc(figures), *tail, wide), (name, _short_auc(figures), *tail, change))
    for name, label in _floor_labels(comparison).items():
        short = floor_label(name, comparison.protocol.context, short=True)
        yield _untrained("floor", label, short, comparison.floors[name])
    if comparison.best_possible:
        yield _untrained("best", "best possible", "best possible", comparison.best_possible)


def _untrained(kind: str, name: str, short: str, figures: Figures) -> Row:
    tail = (MISSING, *_quality(figures), *[MISSING] * 3)
    return Row(kind, (name, _auc(figures), *tail), (short, _short_auc(figures), *tail))


def _floor_labels(comparison: Comparison) -> dict[str, str]:
    return {name: f"floor: {floor_label(name, comparison.protocol.context)}" for name in comparison.floors}


def side_tables(comparison: Comparison) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and lines of the tables below the main one: slices, and the figures it has no space for."""
    compared = dict(comparison.each())
    titles = {
        "history_length": "AUC by history length (earlier rows of the user)",
        "item_popularity": "AUC by item popularity (training targets of the item)",
        "cold_items": "AUC of cold items (fewer than 5 training targets) and of all others",
    }
    for key, title in titles.items():
        buckets = zip(*(getattr(figures.slices, key) for figures in compared.values()), strict=True)
        lines = [[same[0].bucket, f"{same[0].count:,}", *(number(one.auc) for one in same)] for same in buckets]
        if not lines:  # reports of before there was this slice
            continue
        yield title, ["", "targets", *(f"`{name}`" for name in compared)], lines
    threshold = comparison.protocol.threshold
    named: dict[str, Figures] = {f"`{name}`": figures for name, figures in compared.items()}
    named |= {label: comparison.floors[name] for name, label in _floor_labels(comparison).items()}
    keys = ("log_loss", "uauc", "f1", "accuracy", "brier", "ece", "predicted_over_observed")
    yield (
        "Users counted the same, decisions and calibration",
        [
            "",
            "log loss",
            "UAUC",
            f"F1 at {threshold}",
            f"accuracy at {threshold}",
            "Brier",
            "ECE",
            "predicted / observed clicks",
        ],
        [[name, *(number(getattr(figures, key)) for key in keys)] for name, figures in named.items()],
    )
    yield (
        "Cost of training, and how many times less a target cost",
        ["", "seconds", "processor seconds", "tokens", "x by the clock", "x by processor", "x fewer tokens"],
        [
            [
                f"`{name}`", _amount(row.train_seconds), _amount(row.processor_seconds), f"{row.tokens:,}",
                *_times(comparison.speed.get(name)),
            ]
            for name, row in compared.items()
        ],
    )  # fmt: skip
    yield (
        "What was trained",
        ["", "targets a prompt", "targets seen", "epochs", "targets/s", "tokens/s", "parameters", "seed"],
        [
            [
                f"`{name}`", str(row.prompts.targets_per_prompt), f"{row.targets:,}", f"{row.epochs:g}",
                _amount(row.targets_per_second), _amount(row.tokens_per_second), f"{row.parameters:,}", str(row.seed),
            ]
            for name, row in compared.items()
        ],
    )  # fmt: skip


def where_next() -> list[str]:
    """Files and pages to open after the table."""
    return [
        "`reports/comparison.html`: this, with the pictures; `reports/comparison.json`: every figure",
        "`reports/evaluation/<paradigm>/predictions.parquet`: every score",
        "`mlflow ui --backend-store-uri sqlite:///mlflow.db`: the runs, under Model training > dti > Views > paradigms",
        "`dg dev`: the graph from log to comparison",
    ]


def percent(comparison: Comparison) -> str:
    return f"{100 * comparison.protocol.confidence:g} %"


def number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def signed(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.4f}"


def _quality(figures: Figures) -> tuple[str, str]:
    return number(figures.gauc), number(figures.ne)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _times(one: Speed | None) -> tuple[str, ...]:
    """By the clock, where it proves something; by processor seconds; in tokens."""
    found = speed.figures(one) if one else {}
    return tuple(
        f"{found[key]:.1f}x" if key in found else MISSING
        for key in ("speedup_clock", "speedup_processor", "fewer_tokens")
    )


def _auc(figures: Figures) -> str:
    return f"{number(figures.auc)} {_interval(figures.auc_interval, '.4f')}".strip()


def _short_auc(figures: Figures) -> str:
    interval = _interval(figures.auc_interval, ".3f").replace(",", "").replace("0.", ".")
    return f"{number(figures.auc)} {interval}".strip()


def _interval(ends: tuple[float | None, float | None] | None, form: str) -> str:
    low, high = ends or (None, None)
    return "" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"


def _fixed(cells: Sequence[str]) -> str:
    rest = (cell.rjust(width) for cell, width in zip(cells[1:], WIDTHS[1:], strict=True))
    return "  ".join([cells[0].ljust(WIDTHS[0]), *rest])


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, all columns but the first aligned to the right."""
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, align, *lines))
