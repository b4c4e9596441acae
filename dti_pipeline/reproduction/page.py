"""A reproduction to read, in a terminal."""

from __future__ import annotations

from dti_pipeline.reproduction.report import Reproduction

PARTS = {
    "made with": "Made with (explains a difference, and is none itself)",
    "data": "Data, by digest",
    "weights": "Weights, by digest; differences are of numbers",
    "training": "Training",
    "metrics": "Metrics of the held-out targets",
}
WIDTHS = (28, 34, 34, 10, 9)


def text(report: Reproduction) -> str:
    lines = [f"Run {report.run_id} ({report.paradigm}), made again in {report.folder} from {report.made_from}."]
    for part, title in PARTS.items():
        lines += ["", f"{title}.", _fixed(("", "then", "now", "difference", ""))]
        for one in report.compared:
            if one.part == part:
                difference = "" if one.difference is None else f"{one.difference:.1e}" if one.difference else "0"
                outcome = "equal" if one.equal else "other" if not one.counts else "NOT EQUAL"
                lines.append(_fixed((one.name, _short(one.then), _short(one.now), difference, outcome)))
    return "\n".join([*lines, "", f"{report.sentence}."])


def _short(value: str) -> str:
    return value if len(value) <= WIDTHS[1] else f"{value[: WIDTHS[1] - 2]}.."


def _fixed(cells: tuple[str, ...]) -> str:
    shown = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, WIDTHS, strict=True))]
    return "  ".join(shown).rstrip()
