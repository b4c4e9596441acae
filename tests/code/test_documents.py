"""What the documents tell people to type exists: commands, options, parameters, targets, files."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from dti_pipeline import config, explain
from dti_pipeline.cli import app
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")]
DOCUMENTS += [ROOT / "models/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROGRAMS = ("dti", "make")
SECTIONS = "|".join(name for name, value in config.to_plain(Config()).items() if isinstance(value, dict))


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def spans(document: Path) -> list[str]:
    """Inline code, outside of fenced blocks."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`]+)`", prose)


def typed(document: Path) -> list[list[str]]:
    """Everything that a reader is told to type, as words."""
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in [*lines, *spans(document)]]
    return [line for line in words if line and line[0] in PROGRAMS]


def cases(find: Any) -> list[Any]:
    return [
        pytest.param(one, id=f"{document.relative_to(ROOT)}: {' '.join(one) if isinstance(one, list) else one[:40]}")
        for document in DOCUMENTS
        for one in find(document)
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_a_table_has_at_most_eight_columns(document: Path) -> None:
    rules = re.findall(r"^\|(?:[ :]*-+[ :]*\|)+$", document.read_text(), re.MULTILINE)
    assert max((rule.count("|") - 1 for rule in rules), default=0) <= 8


@pytest.mark.parametrize("words", cases(typed))
def test_what_is_to_be_typed_exists(words: list[str]) -> None:
    program, *rest = words
    if program == "make":
        assert {word for word in rest if "=" not in word} <= TARGETS
        return
    if not rest or rest[0].startswith("-"):
        assert set(rest) <= {"--help"}
        return
    name, *arguments = rest
    assert name in COMMANDS
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help"}
    assert {word for word in arguments if word.startswith("--")} <= known
    overrides = [value for flag, value in itertools.pairwise(arguments) if flag == "--set"]
    if "--help" not in arguments:
        config.load(Path("none"), overrides)  # InputError names a key or value that cannot be


@pytest.mark.parametrize("block", cases(lambda document: blocks(document, "yaml")))
def test_parameters_that_are_shown_can_be_set(block: str) -> None:
    config.from_plain(Config, yaml.safe_load(block))


def parameters(document: Path) -> list[str]:
    return [span for span in spans(document) if re.match(rf"({SECTIONS})\.[a-z_]+(: |$)", span)]


@pytest.mark.parametrize("span", cases(parameters))
def test_parameters_that_are_named_exist(span: str) -> None:
    key, _, value = span.partition(": ")
    if value:
        config.load(Path("none"), [f"{key}={value}"])
        return
    try:
        explain.explained(Config(), key)
    except InputError as error:
        if "was removed" not in str(error):  # a document may tell of the past
            raise


def links(document: Path) -> list[str]:
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    paths = [span for span in spans(document) if re.fullmatch(r"(dti_pipeline|tests|docs|benchmarks)/[\w./]*", span)]
    here = document.parent.relative_to(ROOT).as_posix()
    return [f"{here}/{target}" for target in found if "://" not in target] + paths


@pytest.mark.parametrize("target", cases(links))
def test_files_that_are_named_exist(target: str) -> None:
    assert (ROOT / target).exists()


def test_the_guide_shows_every_command_and_the_readme_is_short() -> None:
    words = typed(ROOT / "docs" / "guide.md")
    assert {line[1] for line in words if line[0] == "dti" and len(line) > 1} >= set(COMMANDS)
    words = typed(ROOT / "README.md")
    assert {line[1] for line in words if line[0] == "make" and len(line) > 1} >= {"demo", "ui"}
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_the_makefile_lists_the_targets_it_has() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == TARGETS
