"""``dti``: parse, read the configuration, call one stage function, print a summary."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dti_pipeline import __version__, config, pipeline
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.paths import PARADIGMS, Paths

app = typer.Typer(
    help="Dynamic Target Isolation for CTR prediction: a raw log in, a judged comparison out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console(stderr=True)

Set = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a parameter.")]
Params = Annotated[Path | None, typer.Option("--params", help="Parameter file; default: params.yaml in the home.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, as the last line.")]
Paradigm = Annotated[
    str | None, typer.Option("--paradigm", help=f"One of {', '.join(PARADIGMS)}; default: each in `paradigms`.")
]


def _configure(overrides: list[str] | None, params: Path | None) -> tuple[Config, Paths]:
    paths = Paths.from_env()
    if params is not None and not params.is_file():
        raise InputError(f"--params {params} does not exist")
    return config.load(params or paths.params, overrides or ()), paths


@contextmanager
def _exit_codes() -> Iterator[None]:
    """0 done, 1 a check or target failed, 2 bad input or usage; one sentence on standard error."""
    try:
        yield
    except InputError as error:
        console.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except CheckFailed as error:
        console.print(f"[bold red]failed:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _print_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    for key, value in report.items():
        if isinstance(value, (int, float)):
            print(f"  {key.replace('_', ' '):<28} {value:>14,}" if isinstance(value, int) else f"  {key.replace('_', ' '):<28} {value:>14,.4f}")
        elif isinstance(value, str):
            print(f"  {key.replace('_', ' '):<28} {value}")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
