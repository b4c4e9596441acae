"""``dti``: parse, read the configuration, run one stage, print its report."""

from __future__ import annotations

import errno
import importlib.util
import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import DownloadColumn, Progress
from typer.core import TyperGroup

from dti_pipeline import cli_home, cli_serving, cli_store, explain, pipeline, tracking
from dti_pipeline.cli_options import (
    NAMES,
    Json,
    Paradigm,
    Params,
    Set,
    answer,
    configure,
    console,
    known,
    print_json,
    say,
)
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed, InputError, check
from dti_pipeline.evaluation import tables
from dti_pipeline.evaluation.report import Comparison
from dti_pipeline.events.report import IngestReport
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import Stage
from dti_pipeline.plain import to_plain
from dti_pipeline.training.listeners import lines, progress_bar
from dti_pipeline.validation.report import ValidateReport

#: How libraries say that the system gave them no memory.
NO_MEMORY = ("bad_alloc", "can't allocate memory", "Cannot allocate memory", "can't start new thread", "failed to map")


class Commands(TyperGroup):
    """Exit codes: 0 done, 1 a check or target failed, 2 bad input or usage, with one sentence on standard error."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (InputError, CheckFailed) as error:
            kind, code = ("error", 2) if isinstance(error, InputError) else ("failed", 1)
            console.print(f"[bold red]{kind}:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(code) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError):  # the reader has gone, as `head` does
                raise
            # A write says these without the file's name.
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            named = error.filename or (Paths.from_env().home if full else None)
            where = f"{named}: " if named else ""
            console.print(f"[bold red]error:[/] {escape(where + (error.strerror or str(error)))}", soft_wrap=True)
            raise typer.Exit(2) from None
        except (MemoryError, RuntimeError, ImportError) as error:
            if not isinstance(error, MemoryError) and not any(words in str(error) for words in NO_MEMORY):
                raise
            print(f"error: there is too little memory: {error}", file=sys.stderr)  # rich would ask for more
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands,
    help="Dynamic Target Isolation for CTR prediction: a raw log in, a comparison of paradigms out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _run(stage: Stage[Any], settings: Config, paths: Paths, paradigm: str | None, as_json: bool) -> object:
    """Run one stage, with its progress as a bar or as lines where it is told, and show its report."""
    listeners = [progress_bar(console) if console.is_terminal else lines(say)]
    try:
        report = pipeline.execute(stage, settings, paths, paradigm, listeners)
    except CheckFailed as error:
        if isinstance(error.report, ValidateReport):
            print(error.report.listing(), file=sys.stderr)
        raise
    if isinstance(report, ValidateReport) and not report.success:
        print(report.listing(), file=sys.stderr)
    if isinstance(report, IngestReport):
        for line in report.left_out():
            say(line)
    if not as_json:
        _show(f"{stage.name} ({paradigm})" if paradigm else stage.name, report)
    return report


def _show(title: str, report: object) -> None:
    """The report's numbers and words, one a line; the comparison as its table."""
    if isinstance(report, Comparison):
        print(tables.render_text(report))
        return
    print(title)
    for key, value in to_plain(report).items():
        name = key.replace("_", " ")
        if isinstance(value, str):
            print(f"  {name:<30} {value}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            print(f"  {name:<30} {value:>14,}" if isinstance(value, int) else f"  {name:<30} {value:>14,.4f}")


def _stage_command(stage: Stage[Any]) -> None:
    """Give a stage of the table its command."""

    def each(overrides: Set = None, params: Params = None, as_json: Json = False, paradigm: Paradigm = None) -> None:
        settings, paths = configure(overrides, params)
        wanted = (paradigm,) if paradigm else settings.paradigms if stage.per_paradigm else (None,)
        reports = {one: _run(stage, settings, paths, one, as_json) for one in wanted}
        if as_json:
            print_json(next(iter(reports.values())) if len(reports) == 1 else reports)

    def once(overrides: Set = None, params: Params = None, as_json: Json = False) -> None:
        each(overrides, params, as_json)

    example = f"dti {stage.name} {'--paradigm dti' if stage.per_paradigm else '--json'}"
    command = app.command(stage.name, help=f"{stage.summary}\n\nExample: `{example}`")
    command(each if stage.per_paradigm else once)


for _stage in pipeline.STAGES:
    _stage_command(_stage)


@app.command("run")
def run_all(overrides: Set = None, params: Params = None, as_json: Json = False) -> None:
    """Everything, from the raw log to the comparison, for each paradigm in `paradigms`.

    Example: `dti run --set events.source=movielens --set events.path=data/raw/movielens-latest-small`
    """
    settings, paths = configure(overrides, params)
    steps = list(pipeline.plan(settings))
    with pipeline.held(steps, settings, paths):  # another process's outputs never come between
        for stage, paradigm in steps:
            report = _run(stage, settings, paths, paradigm, as_json)
    if as_json:
        print_json(report)


@app.command("backtest")
def backtest_days(
    overrides: Set = None, params: Params = None, as_json: Json = False, paradigm: Paradigm = None
) -> None:
    """The log day by day: each day learns what became known on it, from yesterday's weights, and is judged on the next.

    It reads what `dti tokenize` made, and goes on where it stopped.

    Example: `dti backtest --paradigm dti --set backtest.period_days=7`
    """
    settings, paths = configure(overrides, params)
    for one in (paradigm,) if paradigm else settings.backtest.paradigms or settings.paradigms:
        report = pipeline.execute(
            pipeline.BACKTEST, settings, paths, one, heard=lambda day, now: say(day.line()) if now else None
        )
        answer(report, as_json, lambda report: report.listing())


@app.command("reproduce")
def reproduce_run(
    run_id: Annotated[str, typer.Argument(help="Of a training, as MLflow has it.")],
    into: Annotated[Path | None, typer.Option(help="Folder to make; default: reproduced/RUN_ID in the home.")] = None,
    overrides: Set = None,
    params: Params = None,
    as_json: Json = False,
) -> None:
    """Make a training again from its record, in a fresh folder: equal data, weights and metrics, or what differs.

    Exit code 1 where something is not equal. On a CPU all of it is, to the last bit.

    Example: `dti reproduce 3f0c1d2e4b5a69788796a5b4c3d2e1f0`
    """
    settings, paths = configure(overrides, params)
    run = tracking.recorded(settings, paths, run_id)
    from dti_pipeline.reproduction import page, reproduce

    def make(name: str, config: Config, home: Paths, paradigm: str) -> None:
        stage = pipeline.BY_NAME[name]
        say(f"{stage.name}: {stage.summary}")
        pipeline.execute(stage, config, home, paradigm if stage.per_paradigm else None)

    report = reproduce.reproduce(settings, paths, run, into or paths.reproduced / run_id, make)
    answer(report, as_json, page.text)
    check(report.equal, report.sentence, report)


@app.command("clean")
def clean_home(as_json: Json = False) -> None:
    """Remove what the stages made here; raw logs, run records and studies stay. Refused while something runs.

    Example: `dti clean`
    """
    from dti_pipeline.clean import clean

    removed = clean(Paths.from_env())
    answer({"removed": removed}, as_json, lambda _: f"removed {', '.join(removed) or 'nothing'}")


@app.command("fetch")
def fetch_log(
    name: Annotated[str, typer.Argument(help="movielens-1m, movielens-latest-small, movielens-100k or amazon.")],
    category: Annotated[str | None, typer.Option(help="Of amazon's reviews, for example All_Beauty.")] = None,
    as_json: Json = False,
) -> None:
    """Download a public rating log into data/raw, checked and unpacked.

    Example: `dti fetch movielens-latest-small`
    """
    from dti_pipeline.events.fetch import fetch

    bar = Progress(*Progress.get_default_columns(), DownloadColumn(), console=console, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(name, total=None)
        report = fetch(
            name,
            Paths.from_env(),
            category,
            say=say,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    use = f"fetched {name}; use it: `--set events.source={report.source} --set events.path={report.path}`"
    answer(report, as_json, lambda _: use)


@app.command("plan")
def plan_cost(
    overrides: Set = None,
    params: Params = None,
    gpu: Annotated[str, typer.Option(help="B200, H200, H100, A100, A100-40GB, L40S or L4.")] = "H100",
    model: Annotated[str | None, typer.Option(help="llama-3.1-8b, say, or a folder; default: params.yaml's.")] = None,
    users: Annotated[int | None, typer.Option(help="Of a log that is not there yet.")] = None,
    interactions: Annotated[int | None, typer.Option(help="Of each of its users.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of each, label included; default 20.")] = None,
    utilisation: Annotated[float, typer.Option(help="Share of the GPU's peak that training reaches.")] = 0.55,
    rows: Annotated[
        int | None, typer.Option(help="Of a log too long to be here: data stages on a cluster, too.")
    ] = None,
    machines: Annotated[int, typer.Option(help="Of the cluster.")] = 1,
    cores: Annotated[int, typer.Option(help="Of each machine.")] = 1,
    as_json: Json = False,
) -> None:
    """Cost of a training before anything is spent: tokens, FLOP, memory, hours, speed-up; runs beside it.

    Examples: `dti plan --model llama-3.1-8b --gpu H200 --set packing.row_length=8192`,
    `dti plan --rows 10000000000 --machines 16 --cores 32 --set training.processes=128`
    """
    from dti_pipeline.planning.plan import plan
    from dti_pipeline.planning.render import render

    settings, paths = configure(overrides, params)
    report = plan(settings, paths, gpu, model, users, interactions, tokens, utilisation, rows, machines, cores)
    answer(report, as_json, render)


@app.command("config")
def show_config(
    key: Annotated[str | None, typer.Option("--explain", metavar="KEY", help="Explain this key or section.")] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what differs from the defaults.")] = False,
    complete: Annotated[
        bool, typer.Option("--complete", help="Write into params.yaml what DVC lacks in it, at its default.")
    ] = False,
    overrides: Set = None,
    params: Params = None,
    as_json: Json = False,
) -> None:
    """The configuration in force, as YAML; or what one key means, its type, range and default.

    Examples: `dti config --changed`, `dti config --explain training.adam_epsilon`, `dti config --complete`
    """
    if complete:
        if key is not None or changed or overrides or params:
            raise InputError("--complete writes the home's params.yaml, and goes with no other option than --json")
        answer(cli_home.complete_params(), as_json, str)
        return
    settings, _ = configure(overrides, params)
    if key is not None:
        answer(explain.explained(settings, key), as_json, explain.text)
    else:
        answer(explain.masked(settings), as_json, lambda config: explain.in_force(config, changed))


def make_study(
    grid: Annotated[Path, typer.Argument(help="The study's file.")] = Path("experiments/study.yaml"),
    only: Annotated[list[str] | None, typer.Option(metavar="GROUP", help="Only this group of runs.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say what would run and what it costs; run nothing.")] = False,
    prepared: Annotated[bool, typer.Option("--prepare", help="Make the logs' tokens, nothing else.")] = False,
    reported: Annotated[bool | None, typer.Option("--report/--no-report", help="Only the tables; or the runs.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time; their seconds then say nothing of speed.")] = 1,
    budget_seconds: Annotated[float | None, typer.Option(help="Save and stop after so long.")] = None,
    log: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="Where a raw log lies.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of tokens and runs; default: study in the home.")] = None,
    track: Annotated[bool | None, typer.Option(help="Record in MLflow; default: tracking.enabled.")] = None,
    params: Params = None,
    as_json: Json = False,
) -> None:
    """A grid of trainings over several logs, to tables and pictures; it resumes where it stopped.

    Examples: `dti study --list`, `dti study --only paradigms --workers 6 --budget-seconds 600`, `dti study --report`
    """
    from experiments import command

    settings, paths = configure([] if track is None else [f"tracking.enabled={str(track).lower()}"], params)
    task = command.Task(
        grid, (work or paths.study).resolve(), tuple(only or ()), workers, budget_seconds, command.logs(log or ())
    )
    if listed:
        report = command.show(task)
    elif prepared:
        report = command.prepare(task, paths)
    else:
        report = command.make(task, settings, paths, reported, say)
    answer(report, as_json, command.text)
    if report.get("failed"):
        raise CheckFailed(f"{report['failed']} runs failed: the results say why; the same command tries them again")


if importlib.util.find_spec("experiments"):  # a package beside this one, which need not be installed
    app.command("study")(make_study)


@app.command("mask")
def draw_mask(
    paradigm: Annotated[str | None, typer.Option(callback=known, help=f"One of {NAMES}; default: all.")] = None,
    context: Annotated[int, typer.Option(help="Context interactions, n.")] = 2,
    targets: Annotated[int | None, typer.Option(help="Target interactions, k; default 4, sliding_window 1.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of an interaction, c: c - 1 of text, and the label.")] = 3,
    known: Annotated[
        str | None,
        typer.Option(
            metavar="J0,J1,..", help="For each interaction the last one whose label it knows, -1: none; default: all."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Draw into this .png or .svg file instead.")] = None,
    as_json: Json = False,
) -> None:
    """Draw who sees whom in one prompt of a paradigm.

    Example: `dti mask --paradigm dti --context 2 --targets 4 --tokens 3`
    """
    from dti_pipeline.modeling.masks import draw

    masks = draw.prompt_masks(paradigm, context, targets, tokens, None if known is None else draw.numbers(known))
    if out is not None:
        draw.picture(masks, out)
    if as_json:
        print_json(masks[paradigm].plain() if paradigm else {name: mask.plain() for name, mask in masks.items()})
    elif out is None:
        page = Console()
        drawings = [draw.text(mask, page.width if page.is_terminal else None) for mask in masks.values()]
        page.print(*drawings, sep="\n\n", soft_wrap=True)


app.command("init")(cli_home.make_home)
app.command("doctor")(cli_home.look)
app.command("ui")(cli_home.show)
app.command("upload")(cli_store.send)
app.command("download")(cli_store.take)
app.command("score")(cli_serving.score_requests)
app.command("serve")(cli_serving.serve_requests)
app.command("export")(cli_serving.export_model)
app.command("certify")(cli_serving.certify_model)
app.command("items")(cli_serving.store_items)


def main() -> None:
    """The ``dti`` script. What the output's encoding cannot hold is written as `?`: the work is done by then."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()
