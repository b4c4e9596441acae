"""Commands that ask a trained model, or hand it on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from dti_pipeline import tracking
from dti_pipeline.cli_options import Json, Params, Set, answer, configure, console, known, print_json, say
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError, check
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths

LOOPBACK = "127.0.0.1"


def folder_of(paradigm: str | None, model: str | None, settings: Config, paths: Paths) -> Callable[[], Path]:
    """The function that finds a model's folder: of a paradigm in the home, a folder, or a version in the registry;
    where neither is named, the champion."""
    if paradigm is not None and model is not None:
        raise InputError("name the model by one of --paradigm and --model")
    if paradigm is not None:
        return lambda: paths.model(paradigm)
    if model is not None and not model.startswith("models:/"):
        return lambda: Path(model)
    address = model or tracking.champion(settings)
    return lambda: tracking.model_folder(settings, paths, address)


def score_requests(
    file: Annotated[Path, typer.Argument(help="Requests: .parquet, .csv, else JSONL; `-`: JSONL on standard input.")],
    paradigm: Annotated[str | None, typer.Option(callback=known, help="Use this paradigm's model of the home.")] = None,
    model: Annotated[str | None, typer.Option(help="A folder, models:/NAME@ALIAS or models:/NAME/VERSION.")] = None,
    out: Annotated[Path | None, typer.Option(help="Answers, JSONL or .parquet; default: standard out.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Answer each line of standard input when it comes.")] = False,
    cache_items: Annotated[bool, typer.Option("--cache-items", help="dti_isolated: keep the states of items.")] = False,
    batch: Annotated[
        bool,
        typer.Option(
            "--batch", help="Resumable, in parts; a bad request is answered by its error, and the exit code is 1."
        ),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes of --batch, a GPU each where there are some.")] = 1,
    as_json: Json = False,
) -> None:
    """P(click) of candidate items for users' histories, by a trained model.

    A line of the file: `{"history": [{"item_id": "12", "label": 1}], "candidates": [{"item_text": "A title"}]}`

    Examples: `dti score requests.jsonl --paradigm dti --out answers.jsonl`,
    `dti score requests.parquet --model models:/dti@champion --batch --workers 2 --out answers.parquet`
    """
    if batch and (stream or out is None):
        raise InputError("--batch writes a file: name it by --out, and leave --stream away")
    if workers > 1 and not batch:
        raise InputError("--workers is for --batch")
    if stream and (str(file) != "-" or out is not None):
        raise InputError("--stream reads standard input (`-`) and answers on standard output")
    if paradigm is None and model is None:
        raise InputError("name the model by one of --paradigm and --model")
    folder = folder_of(paradigm, model, *configure(None, None))()
    from dti_pipeline.modeling.speed import compiler_cache
    from dti_pipeline.serving import item_store
    from dti_pipeline.serving.score import ScoreReport, score_file, score_stream
    from dti_pipeline.serving.scorer import Scorer

    compiler_cache.keep(Paths.from_env().compiled)
    if batch and out is not None:
        report: object = _score_batch(file, folder, out, workers, cache_items)
    else:
        scorer, stdout = Scorer.load(folder, cache_items=cache_items), sys.stdout.buffer
        if scorer.states is not None:
            item_store.start_with(scorer.states, folder, Paths.from_env().item_states)
        report = score_stream(sys.stdin.buffer, scorer, stdout) if stream else score_file(file, scorer, out, stdout)
    if as_json:
        print_json(report)
    elif isinstance(report, ScoreReport):
        say(
            f"{report.candidates:,} candidates of {report.requests:,} requests in {report.seconds:,.1f} s,"
            f" {report.candidates_per_second:,.0f} a second"
        )


def _score_batch(file: Path, folder: Path, out: Path, workers: int, cache_items: bool) -> object:
    from dti_pipeline.serving.batch import Task, score_batch

    columns = (TextColumn("{task.completed:,.0f} requests"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        told = bar.add_task("score", total=None)
        return score_batch(Task(file, folder, out, workers, cache_items), lambda more: bar.advance(told, more))


def serve_requests(
    paradigm: Annotated[str | None, typer.Option(callback=known, help="Use this paradigm's model of the home.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A folder, models:/NAME@ALIAS or models:/NAME/VERSION; default: the champion.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; the default lets in this machine alone.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free; the log names it.")] = 8000,
    overrides: Set = None,
    params: Params = None,
) -> None:
    """A model behind HTTP: `/v1/score` takes a line of `dti score`'s file; `/health`, `/metrics`, `/docs`.

    A model that takes the place of the one in use (another champion, a folder published anew) is loaded beside it and
    taken between two requests. SIGTERM or Ctrl-C: open requests are answered, then it ends.

    Examples: `dti serve`, `dti serve --paradigm dti --port 8001 --set serving.wait_ms=5`
    """
    settings, paths = configure(overrides, params)
    for library in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(library) is None:
            raise InputError(f"{library} is not installed: pip install 'dti-pipeline[serving]'")
    find = folder_of(paradigm, model, settings, paths)
    from dti_pipeline.modeling.speed import compiler_cache
    from dti_pipeline.serving.http import logs
    from dti_pipeline.serving.http.server import Server

    logs.to_standard_error()
    compiler_cache.keep(paths.compiled)
    Server(settings.serving, find, host, port, paths.item_states).run()


def export_model(
    model: Annotated[str, typer.Argument(help="A paradigm of the home, a folder, or models:/NAME@ALIAS.")],
    to: Annotated[Path, typer.Option(help="Folder to write; one that is there must be an earlier export.")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Base and LoRA matrices apart, for vLLM and peft.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, or bfloat16, which rounds.")] = "float32",
    as_json: Json = False,
) -> None:
    """A trained model as a Hugging Face folder that other programs read: weights, tokenizer, prompts, model card.

    The folder's own code is asked before it is kept: it must give the probabilities of `dti score`.

    Examples: `dti export dti --to exported`, `dti export models:/dti@champion --to exported --dtype bfloat16`
    """
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"--dtype is float32 or bfloat16, not {dtype}")
    of_home = model in names()
    folder = folder_of(model if of_home else None, None if of_home else model, *configure(None, None))()
    from dti_pipeline.serving.export.export import export

    report = export(folder, to, adapter, dtype)
    answer(
        report,
        as_json,
        lambda done: (
            f"{to}: {done.form}, {done.head} head, {done.dtype}; by its own code {done.prompts} prompts differ from"
            f" `dti score` by {done.largest_difference:.2g} at most"
        ),
    )


def certify_model(
    model: Annotated[
        str | None,
        typer.Argument(help="A paradigm of the home, a folder, models:/NAME@ALIAS or /VERSION; default: the champion."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Targets that are asked, each of a request of its own.")] = 64,
    overrides: Set = None,
    params: Params = None,
    as_json: Json = False,
) -> None:
    """Proofs on a trained model and real rows: served equals trained, nothing leaks, the files are sound.

    The certificate lies in reports/certificates, and is kept with the model's version in the registry. Exit code 1
    where a proof fails.

    Examples: `dti certify dti`, `dti certify models:/dti@champion --rows 256`
    """
    settings, paths = configure(overrides, params)
    of_home = model in names()
    folder = folder_of(model if of_home else None, None if of_home else model, settings, paths)()
    from dti_pipeline.certify import certify, page

    name = tracking.champion(settings) if model is None else model
    certificate = certify.certify(settings, paths, certify.Task(folder, name, rows))
    answer(certificate, as_json, page.text)
    tracking.record(settings, paths, certificate)
    kept = (
        "" if certificate.mlflow_run_id and settings.tracking.enabled else ", and with no version: there is no record"
    )
    say(f"kept in {paths.certificate(certificate.paradigm, certificate.model_digest)}{kept}")
    check(certificate.passed, certificate.sentence, certificate)


def store_items(
    paradigm: Annotated[str | None, typer.Option(callback=known, help="Use this paradigm's model of the home.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A folder, models:/NAME@ALIAS or models:/NAME/VERSION; default: the champion.")
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Items, at most; default: all of the training log.")] = None,
    as_json: Json = False,
) -> None:
    """States of a model's items, `dti_isolated` only, as files with which `dti serve` and `dti score` start.

    What an earlier store of the same model holds is read, not computed again.

    Examples: `dti items`, `dti items --paradigm dti_isolated --most 10000`
    """
    settings, paths = configure(None, None)
    folder = folder_of(paradigm, model, settings, paths)()
    from dti_pipeline.serving.item_store import make

    answer(
        make(folder, paths.item_states, most),
        as_json,
        lambda done: (
            f"{done.texts:,} texts of {done.items:,} items, {done.mib:,.1f} MiB in {done.dtype}; {done.read:,} were"
            " there"
        ),
    )
