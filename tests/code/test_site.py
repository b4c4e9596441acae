"""The site builds without a warning, loads nothing from elsewhere, and has a page for each task and each table."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import typer.main

from dti_pipeline import explain
from dti_pipeline.cli import app
from dti_pipeline.config import Config

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. In strict mode the first warning ends the build: a dead link, a missing anchor."""
    pytest.importorskip("mkdocs", reason="the site's generator is not installed: dti-pipeline[docs]")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
    for page in site.rglob("*.html"):
        assert loads.findall(page.read_text(encoding="utf-8")) == [], page
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")) == [], style


def test_each_task_and_each_table_has_a_page_of_its_own(site: Path) -> None:
    tasks = {path.stem for path in (ROOT / "docs" / "howto").glob("*.md")}
    assert {path.stem for path in (site / "howto").glob("*.html")} == tasks
    front = (site / "operations.html").read_text(encoding="utf-8")
    assert all(f'href="howto/{task}.html"' in front for task in tasks)
    for document in ("results", "llm", "benchmark"):
        headings = re.findall(r"^## ", (ROOT / "docs" / f"{document}.md").read_text(encoding="utf-8"), re.MULTILINE)
        assert len(list((site / document).glob("*.html"))) == len(headings)


def test_every_parameter_and_every_command_is_in_the_reference(site: Path) -> None:
    parameters = (site / "reference" / "parameters.html").read_text(encoding="utf-8")
    keys = [entry.key for entry in explain.explained(Config(), "") if entry.type]
    assert [key for key in keys if f"<code>{key}</code>" not in parameters] == []
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    names = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert [name for name in names if f">dti {name}<" not in commands] == []


def test_links_to_sources_are_their_names(site: Path) -> None:
    page = (site / "dti.html").read_text(encoding="utf-8")
    assert "<code>dti_pipeline/" in page or "<code>tests/" in page
    assert not re.search(r'href="[^"]*\.py"', page)
