"""Commands that make a home, and look at one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dti_pipeline import config, dvc, lineage, pipeline
from dti_pipeline.address import is_address
from dti_pipeline.cli_options import Json, answer, say
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.paths import Paths

DVC_HEADER = """\
# The stages of `dti run`, for `dvc repro`: written by `dti init`. `dvc metrics show` and `dvc plots show` read the
# comparison.
"""


def make_home(
    folder: Annotated[Path, typer.Argument(help="The home; made where it is not there.")] = Path(),
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="LOG", help="Your log: CSV, TSV, JSONL, Parquet, or a folder; s3:// too."),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="ROLE=NAME", help="What a column is, such as rating=stars.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Such as small-log; default: from the log's size.")] = None,
) -> None:
    """Make a home: params.yaml for a log, dvc.yaml, dagster.yaml, git and DVC begun. It overwrites no file.

    Examples: `dti init my-project`, `dti init my-project --from ratings.csv`,
    `dti init --from views.parquet --column rating=watched`
    """
    from dti_pipeline.homes import make

    home = folder.resolve()
    if source is None and (column or recipe):
        raise InputError("--column and --recipe are about a log: name it with --from")
    if source is not None and (home / "params.yaml").exists():
        raise InputError(
            f"{home / 'params.yaml'} exists, and dti init overwrites nothing: remove it, or name a new folder"
        )
    if source is None:
        params = (config.PACKAGE / "recipes" / "demo.yaml").read_text(encoding="utf-8")
    else:
        params = _proposed(source, home, column or [], recipe)
    own = source is not None or (
        (home / "params.yaml").exists() and not pipeline.SYNTH.needed(config.load(home / "params.yaml"))
    )
    stages = dvc.render(make.text("metrics.yaml"), DVC_HEADER, (pipeline.SYNTH.name,) if own else ())
    say(f"{home}")
    for line in make.write(home, make.files(home.name, params, stages)):
        say(line)
    for line in make.begin_records(home):
        say(line)
    enter = "" if home == Path.cwd() else f"cd {folder} && "
    say(f"Next: `{enter}dti doctor`, then `dti run` (`dti plan` after `dti tokenize` says what it costs)")


def _proposed(source: str, home: Path, column: list[str], recipe: str | None) -> str:
    """The params.yaml for a log; its reasons are told, too."""
    from dti_pipeline.homes.make import params
    from dti_pipeline.homes.propose import propose
    from dti_pipeline.homes.remote import proposed_from_store

    named = {}
    for one in column:
        role, separator, name = one.partition("=")
        if not separator:
            raise InputError(f"--column {one!r} must read ROLE=NAME, such as rating=stars")
        named[role] = name
    how = partial(propose, home=home, named=named, name=recipe, gpu=bool(lineage.gpu_names()))
    settings = proposed_from_store(source, home, how) if is_address(source) else how(Path(source))
    for setting in settings:
        if setting.why:
            say(f"{setting.key}: {setting.value}  {setting.why}")
    return params(settings, home.name)


def look(as_json: Json = False) -> None:
    """What is here, and what is missing, a line each: versions, GPU, threads, disk, ports, pools, git, DVC, the log.

    `!` stops the pipeline (exit code 1), `-` is worth knowing.

    Example: `dti doctor`
    """
    from dti_pipeline.homes.doctor import examine

    found = examine(Paths.from_env())
    answer(found, as_json, lambda findings: "\n".join(finding.line() for finding in findings))
    if stops := [finding.name for finding in found if finding.state == "stop"]:
        raise CheckFailed(f"the pipeline cannot work: {', '.join(stops)}")


def complete_params() -> str:
    """Write the keys that dvc.yaml names and params.yaml lacks into it, at their defaults; a sentence that says so."""
    from dti_pipeline import artifacts
    from dti_pipeline.homes.complete import completed, left_out

    paths = Paths.from_env()
    if not (paths.home / dvc.FILE).is_file():
        raise InputError(f"{paths.home} has no {dvc.FILE}, which names what DVC wants: `dti init` writes one")
    keys = left_out(paths)
    if not keys:
        return f"{paths.params} has all that {dvc.FILE} names"
    artifacts.write_text(paths.params.resolve(), completed(paths, keys))
    return f"{paths.params} has now {', '.join(keys)}, each at its default"


def show() -> None:
    """Dagster and MLflow in the browser, together; Ctrl-C stops both.

    Example: `dti ui`
    """
    from dti_pipeline import ui

    if code := ui.main():
        raise typer.Exit(code)
