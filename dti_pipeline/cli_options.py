"""What the commands share: options, the configuration, and how a report is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dti_pipeline import config
from dti_pipeline.config import Config
from dti_pipeline.paradigms import named, names
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain

console = Console(stderr=True)


def known(paradigm: str | None) -> str | None:
    return None if paradigm is None else named(paradigm).name


Set = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a parameter.")]
Params = Annotated[Path | None, typer.Option(help="Such as recipes/small.yaml; default: params.yaml in the home.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, as the last line.")]
NAMES = ", ".join(names())
Paradigm = Annotated[str | None, typer.Option(callback=known, help=f"One of {NAMES}; default: each in `paradigms`.")]


def configure(overrides: list[str] | None, params: Path | None) -> tuple[Config, Paths]:
    paths = Paths.from_env()
    return config.load(config.find(params, paths.home) if params else paths.params, overrides or ()), paths


def say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def answer(report: object, as_json: bool, text: Callable[[Any], str]) -> None:
    """Print a report as one line of JSON, or in words."""
    narrow = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(json.dumps(to_plain(report), ensure_ascii=narrow) if as_json else text(report).removesuffix("\n"))


def print_json(report: object) -> None:
    answer(report, True, str)
