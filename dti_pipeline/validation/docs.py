"""Data Docs that can be read without a network.

Great Expectations loads stylesheet, icons and the tables of its index from other hosts. So each page gets a small
stylesheet that yields to theirs (``:where`` weighs nothing), and the index a plain list of what was checked.
"""

from __future__ import annotations

import html
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from great_expectations.render.renderer import site_builder

from dti_pipeline.validation.report import Outcome

_LOGO_HOST = "https://great-expectations-web-assets.s3.us-east-2.amazonaws.com/"
_STYLE = """<style>
:where(body) { font-family: system-ui, sans-serif; margin: 1em; line-height: 1.4; }
:where(table) { border-collapse: collapse; margin: 0.3em 0; }
:where(td, th) { border: 1px solid #ccc; padding: 0.25em 0.6em; text-align: left; vertical-align: top; }
:where(.collapse, .breadcrumb, footer) { display: none; }
:where(.text-success) { color: #28a745; font-style: normal; }
:where(.text-danger) { color: #dc3545; font-style: normal; }
:where(.fa-check-circle)::before { content: "\\2713"; }
:where(.fa-times)::before { content: "\\2717"; }
.checked { margin: 1em 3em; }
</style>
"""


#: No page runs a script, whatever words of a log came into it: what their scripts do needs a network.
_POLICY = """<meta http-equiv="Content-Security-Policy" content="script-src 'none'; object-src 'none'">"""


_CHECKED = '<div class="checked">'
_LOADS = '<p><a href="loads/index.html">The loads of this log</a></p>'


def build(context: Any, folder: Path, outcomes: Sequence[Outcome], notes: Sequence[str]) -> None:
    """Build the Data Docs of a context, whose one site is at ``folder``, then change its pages in place.

    Raises OSError where a page cannot be written.
    """
    log = logging.getLogger(site_builder.__name__)
    log.addFilter(_raised)
    try:
        context.build_data_docs()
    finally:
        log.removeFilter(_raised)
    for page in folder.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        home = "../" * (len(page.relative_to(folder).parts) - 1)
        text = text.replace(_LOGO_HOST, f"{home}static/images/").replace("</head>", f"{_STYLE}</head>", 1)
        text = text.replace("<head>", f"<head>{_POLICY}", 1)
        asset = page.stem.partition("-")[2]
        text = text.replace("Data asset: None", f"Data asset: {asset}", 1)
        if page == folder / "index.html":
            text = text.replace("</nav>\n    <div", f"</nav>\n    {_checked(folder, outcomes, notes)}<div", 1)
        page.write_text(text, encoding="utf-8")


def list_loads(folder: Path, loads: Sequence[tuple[str | None, Sequence[Outcome]]]) -> None:
    """Write ``loads/index.html``, which leads from the pages of the files before all loads, at ``folder``, to those of
    each load, and link to it from theirs."""
    rows = ""
    for number, (name, outcomes) in enumerate(loads):
        failed = sum(not outcome.success for outcome in outcomes)
        link = f'<a href="{number or ".."}/index.html">{html.escape(name or "the files before all loads")}</a>'
        rows += f"<tr><td>{_mark(failed == 0)}</td><td>{link}</td><td>{failed} of {len(outcomes)} failed</td></tr>"
    title = "Loads of the log"
    (folder / "loads").mkdir(exist_ok=True)
    (folder / "loads/index.html").write_text(
        f'<!DOCTYPE html><html lang="en"><head>{_POLICY}<meta charset="utf-8"><title>{title}</title>{_STYLE}</head>'
        f'<body><h4>{title}</h4><table class="table">{rows}</table></body></html>\n',
        encoding="utf-8",
    )
    page = folder / "index.html"
    text = page.read_text(encoding="utf-8")
    if _LOADS not in text:
        page.write_text(text.replace(_CHECKED, f"{_CHECKED}{_LOADS}", 1), encoding="utf-8")


def _raised(_: logging.LogRecord) -> bool:
    """Raise the OSError that Great Expectations is about to log before it goes on without a page."""
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        raise error
    return True


def _checked(folder: Path, outcomes: Sequence[Outcome], notes: Sequence[str]) -> str:
    pages = {page.relative_to(folder).parts[1]: page for page in folder.glob("validations/*/*/*/*.html")}
    rows = ""
    for suite in dict.fromkeys(outcome.suite for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.suite == suite]
        failed = [outcome for outcome in own if not outcome.success]
        mark = _mark(not failed)
        says = "<br>".join(html.escape(f"{outcome.expected}: {outcome.observed}") for outcome in failed)
        link = f'<a href="{pages[suite].relative_to(folder).as_posix()}">{suite}</a>'
        cells = (mark, link, f"{len(failed)} of {len(own)} failed", says or "as expected")
        rows += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    table = f'<table class="table table-sm">{rows}</table>'
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"{_CHECKED}<h4>What was checked</h4>{table}{said}</div>\n"


def _mark(passed: bool) -> str:
    return f'<i class="fas {"fa-check-circle text-success" if passed else "fa-times text-danger"}"></i>'
