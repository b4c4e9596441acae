"""A stage's report as what Dagster shows: figures it can plot, tables, pictures, links to the tracked runs."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from dti_pipeline.backtest.report import BacktestReport, Day
from dti_pipeline.evaluation.report import Comparison, Evaluation
from dti_pipeline.events.report import IngestReport, SynthReport
from dti_pipeline.packing.report import PackReport, TokenizeReport
from dti_pipeline.plain import to_plain
from dti_pipeline.tracking import mlflow_page
from dti_pipeline.training.report import TrainReport
from dti_pipeline.validation.report import ValidateReport

#: The figures of a report for its log line; of others all.
HEADLINES: dict[type, tuple[str, ...]] = {
    SynthReport: ("rows", "users", "items", "best_possible_auc"),
    IngestReport: ("read", "kept", "quarantined", "duplicates", "users", "items"),
    ValidateReport: ("expectations", "failed"),
    TokenizeReport: ("interactions", "vocabulary", "tokens_per_interaction"),
    PackReport: ("targets", "dropped", "rows", "tokens_per_target", "padding_share"),
    TrainReport: ("targets", "train_seconds", "targets_per_second", "validation_auc"),
    Evaluation: ("targets", "auc", "auc_streaming", "log_loss"),
}


def describe(report: object, output: Path) -> dict[str, Any]:
    """Metadata of a materialisation: headline, links and pictures first, then all the rest."""
    plain: dict[str, Any] = to_plain(report)
    figures = {name: _plain(value) for name, value in plain.items() if _is_plain(value) and name != "mlflow_run_id"}
    tables: dict[str, Any] = {}
    if isinstance(report, Comparison):
        first: dict[str, Any] = _compared(report)
        page = output.with_suffix(".md")  # the comparison's own tables say it better than its figures in a row
        if page.is_file():
            first["comparison"] = dg.MetadataValue.md(page.read_text(encoding="utf-8").partition("\n![")[0])
    else:
        first = {name: figures.pop(name) for name in HEADLINES.get(type(report), ()) if name in figures}
        for name, value in plain.items():
            if isinstance(value, (Mapping, list)) and value:
                tables |= _tables(name, value)
    pictures = _pictures(output)
    if isinstance(report, TrainReport):
        pictures["mask"] = _mask(report.paradigm)
    return {**first, **_links(report), **pictures, **figures, **tables, "path": dg.MetadataValue.path(str(output))}


def of_day(day: Day) -> dict[str, Any]:
    """Metadata of a day of a backtest: figures that Dagster plots over the days."""
    scores = {"": day.score, **{f"_{age}_older": score for age, score in day.stale.items()}}
    if day.fresh is not None:
        scores["_fresh"] = day.fresh
    found: dict[str, Any] = {f"auc{whose}": score.auc for whose, score in scores.items()}
    found |= {"log_loss": day.score.log_loss, **vars(day.learnt), "judged_on": day.judged_on, "judged": day.judged}
    return {name: _plain(value) for name, value in found.items() if value is not None}


def of_backtest(report: BacktestReport, output: Path) -> dict[str, Any]:
    """Metadata of all days together, beside that of the last: means, pictures, the folder."""
    found = {"days": len(report.days), "mean_auc": report.auc, "mean_log_loss": report.log_loss}
    found |= {f"auc_lost_by_{age}": stale.auc_lost for age, stale in report.staleness.items()}
    figures = {name: _plain(value) for name, value in found.items() if value is not None}
    return {**figures, **_pictures(output), "path": dg.MetadataValue.path(str(output))}


def headline(report: object) -> str:
    """The few figures of a report for a log line."""
    figures: Mapping[str, Any] = _compared(report) if isinstance(report, Comparison) else to_plain(report)
    names = HEADLINES.get(type(report), figures)
    found = {name: figures[name] for name in names if figures[name] is not None}
    return ", ".join(f"{name.replace('_', ' ')} {_cell(value)}" for name, value in found.items())


def table(rows: Sequence[Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    """Rows as a Markdown table, columns in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _compared(report: Comparison) -> dict[str, float]:
    """AUC, speed-up and AUC difference of each paradigm as single figures, which Dagster plots over time."""
    figures = {f"auc: {name}": row.auc for name, row in report.paradigms.items()}
    figures |= {f"speedup: {name}": value for name, value in report.speedup.items()}
    figures |= {f"auc_delta: {name}": delta.mean for name, delta in report.auc_delta.items()}
    return {name: _plain(float(value)) for name, value in figures.items() if value is not None}


def _tables(name: str, value: Any) -> dict[str, Any]:
    """A nested value as a table where it has the shape of one, else as JSON."""
    if _are_rows(value):
        return {name: table(value)}
    inner = value.values() if isinstance(value, Mapping) else [value]
    if all(isinstance(one, Mapping) for one in inner):
        return {name: _matrix({key: _flat(one) for key, one in value.items()})}
    if all(_is_plain(one) or one is None for one in inner):
        return {name: table([{"": key, "value": one} for key, one in value.items()])}
    if all(map(_are_rows, inner)):
        return {f"{name}: {key}": table(rows) for key, rows in value.items()}
    return {name: dg.MetadataValue.json(value)}


def _matrix(entries: Mapping[str, Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    """A line for each entry, or a column for each where that makes the narrower table."""
    fields = list(dict.fromkeys(field for entry in entries.values() for field in entry))
    if len(fields) <= len(entries) + 2:
        return table([{"": name, **entry} for name, entry in entries.items()])
    return table([{"": field} | {name: entry.get(field) for name, entry in entries.items()} for field in fields])


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _are_rows(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(row, Mapping) and not any(isinstance(one, Mapping) for one in row.values()) for row in values
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _plain(value: Any) -> Any:
    """A figure of six digits, for which a page has room; a plain float where NumPy's passed for one."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return f"[{', '.join(map(_cell, value))}]"
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _links(report: object) -> dict[str, Any]:
    trained = report.training if isinstance(report, Evaluation) else report
    runs: dict[str, str | None] = {"mlflow_run": getattr(trained, "mlflow_run_id", None)}
    if isinstance(report, Comparison):
        runs = {f"mlflow_run: {name}": row.mlflow_run_id for name, row in report.paradigms.items()}
    return {name: dg.MetadataValue.url(mlflow_page.run_address(run)) for name, run in runs.items() if run}


def _mask(paradigm: str) -> dg.MarkdownMetadataValue:
    """The attention mask of a small prompt of the paradigm."""
    from dti_pipeline.modeling.masks import draw  # torch: here, where a training has just taken longer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        draw.picture(draw.prompt_masks(paradigm), path)
        return _picture(path)


def _pictures(output: Path) -> dict[str, Any]:
    return {picture.stem: _picture(picture) for picture in sorted(output.glob("*.png"))}


def _picture(path: Path) -> dg.MarkdownMetadataValue:
    encoded = base64.b64encode(path.read_bytes()).decode()
    return dg.MetadataValue.md(f"![{path.stem}](data:image/png;base64,{encoded})")
