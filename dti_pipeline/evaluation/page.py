"""comparison.html: one file that needs nothing else, pictures included."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence

from dti_pipeline.evaluation import tables
from dti_pipeline.evaluation.report import Comparison

#: Nothing is loaded and nothing is run, whatever words of a log came into the page.
POLICY = (
    '<meta http-equiv="Content-Security-Policy"'
    """ content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">"""
)
STYLE = """
:root { --ink: #1b1f24; --soft: #59636e; --line: #d9dee3; --wash: #f6f8fa; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 15px/1.55 system-ui, "Liberation Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 27px; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 36px 0 10px; }
p.facts { color: var(--soft); max-width: 88ch; margin: 0 0 22px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; font-size: 13px; }
th { border-bottom: 2px solid var(--ink); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tr.floor td, tr.best td { color: var(--soft); background: var(--wash); }
tr.first td { border-top: 2px solid var(--line); }
.scroll { overflow-x: auto; }
small { color: var(--soft); font-size: 11.5px; display: block; line-height: 1.2; }
code { font: 13px/1.4 ui-monospace, "Liberation Mono", monospace; }
dl.verdict { margin: 0; }
dl.verdict div { border-left: 4px solid var(--mark); background: var(--wash); padding: 9px 14px; margin: 0 0 8px; }
dt { font-weight: 600; } dd { margin: 2px 0 0; }
p.note { border-left: 4px solid #e69f00; background: #fdf6e7; padding: 9px 14px; margin: 0 0 8px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 18px; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: 10px; }
figure img { width: 100%; height: auto; display: block; }
@media print { main { max-width: none; } figure { break-inside: avoid; } }
"""


#: An interval goes under its figure: the table stays narrow enough to read on one screen.
INTERVAL, SMALL = re.compile(r" (\[.*\])"), r"<small>\1</small>"


def render(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """The page. ``pictures`` are SVG files by name, written into it as base64."""
    title = f"Comparison: {comparison.dataset}"
    rows = list(tables.rows(comparison))
    before = ["paradigm", *(row.kind for row in rows)]
    classes = [f"{row.kind} first" if row.kind != kind else row.kind for row, kind in zip(rows, before, strict=False)]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="facts">{_inline(tables.facts(comparison))}</p>',
        _table(tables.COLUMNS, [row.cells for row in rows], [f' class="{name}"' for name in classes]),
        "<h2>Verdict</h2>",
        '<dl class="verdict">',
        *(f"<div><dt>{name}</dt><dd>{_inline(comparison.verdict[name])}</dd></div>" for name, _ in comparison.each()),
        "</dl>",
        *(f'<p class="note">{_inline(note)}</p>' for note in comparison.notes),
        "<h2>Pictures</h2>",
        '<div class="grid">',
        *(
            f'<figure><img alt="{html.escape(name.replace("_", " "))}"'
            f' src="data:image/svg+xml;base64,{base64.b64encode(data).decode("ascii")}"></figure>'
            for name, data in pictures.items()
        ),
        "</div>",
        *(
            f"<h2>{_inline(heading)}</h2>{_table(columns, lines, [''] * len(lines))}"
            for heading, columns, lines in tables.side_tables(comparison)
        ),
        "<h2>Where to look next</h2>",
        "<ul>",
        *(f"<li>{_inline(line)}</li>" for line in tables.where_next()),
        "</ul>",
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{POLICY}\n"
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], attributes: Sequence[str]) -> str:
    """``attributes``: those of each line's element, such as its class."""
    body = "".join(_line("td", cells, own) for cells, own in zip(lines, attributes, strict=True))
    return f'<div class="scroll"><table><thead>{_line("th", header)}</thead><tbody>{body}</tbody></table></div>'


def _line(element: str, cells: Sequence[str], attributes: str = "") -> str:
    inner = "".join(f"<{element}>{INTERVAL.sub(SMALL, _inline(cell))}</{element}>" for cell in cells)
    return f"<tr{attributes}>{inner}</tr>"


def _inline(text: str) -> str:
    """Escaped text in which `code` is code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))
