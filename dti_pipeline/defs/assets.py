"""The asset graph: one asset for each stage of :mod:`dti_pipeline.pipeline`, its noun for a name.

Without ``from __future__ import annotations``: Dagster reads the annotations of an asset function as they stand.
"""

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dagster as dg

from dti_pipeline import artifacts, pipeline
from dti_pipeline.defs import checks, dvc_record, metadata, processes, training
from dti_pipeline.defs.conditions import CONDITIONS
from dti_pipeline.defs.resources import Project, Work
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.events.report import RawLog
from dti_pipeline.paradigms import names
from dti_pipeline.pipeline import STAGES, Stage

#: One run trains one paradigm (Dagster's default for partitions): a crash of one leaves the others alone, each
#: output has a data version of its own, and the `gpu` pool queues them.
BY_PARADIGM = dg.StaticPartitionsDefinition(list(names()))
OWNERS = ["team:ctr"]
KINDS = {
    "synth": {"csv"},
    "ingest": {"duckdb", "parquet"},
    "validate": {"greatexpectations", "duckdb"},
    "tokenize": {"huggingface", "numpy"},
    "pack": {"numpy"},
    "train": {"pytorch", "mlflow"},
    "evaluate": {"scikitlearn", "parquet"},
    "compare": {"matplotlib", "mlflow"},
}
#: One run at a time in each pool (dagster.yaml). `gpu`: two models would share its memory. `duckdb`: one writer, and
#: memory for one. `dvc`: what is left ends with a commit that locks the repository, and is short.
POOLS = {"ingest": "duckdb", "validate": "duckdb", "train": "gpu", "evaluate": "gpu"}
OTHER_POOL = "dvc"
#: Read where each step is a pod (docs/operations.md, "Kubernetes"): what uses a GPU asks the cluster for one.
GPU_POD = {"dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}}


def upstream(stage: Stage[Any]) -> list[Stage[Any]]:
    """The stages that make what this one reads, in the table's order."""
    return [other for other in STAGES if any(_makes(other, dep) for dep in stage.deps)]


def _makes(stage: Stage[Any], dep: str) -> bool:
    return dep == stage.gives or any(out == dep or out.startswith(f"{dep}/") for out in stage.outs)


def build(stage: Stage[Any]) -> dg.AssetsDefinition:
    """A stage as an asset: run it, then say what came out, judge it, and let DVC know."""

    @dg.asset(
        name=stage.asset,
        deps=[other.asset for other in upstream(stage)],
        partitions_def=BY_PARADIGM if stage.per_paradigm else None,
        description=f"{stage.summary}\n\nCommand line: `dti {stage.name}`. Makes: {_listed(stage.outs)}.",
        group_name="dti",
        owners=OWNERS,
        kinds=KINDS[stage.name],
        metadata=_code_reference(stage),
        code_version=_code_version(stage),
        pool=POOLS.get(stage.name, OTHER_POOL),
        op_tags=GPU_POD if POOLS.get(stage.name) == "gpu" else None,
        automation_condition=CONDITIONS.get(stage.name),
        check_specs=checks.specs(stage),
    )
    def compute(
        context: dg.AssetExecutionContext, project: Project, pipes: dg.PipesSubprocessClient
    ) -> dg.MaterializeResult:
        processes.sign(context)
        paradigm = context.partition_key if stage.per_paradigm else None
        with _in_one_sentence():
            work = project.open()
            report: object
            if stage.told:  # in a process of its own
                report = training.run(context, pipes, work, context.partition_key)
            else:
                report = _run(stage, work, paradigm)
            context.log.info(metadata.headline(report))
            output = _output(stage, work, paradigm)
            judged = checks.results(stage, report)
            if not any(checks.refuses(result) for result in judged):
                dvc_record.record(stage, work, paradigm, context.log)
            return dg.MaterializeResult(
                metadata=metadata.describe(report, output),
                data_version=dg.DataVersion(artifacts.digest(output)),
                check_results=judged,
            )

    return compute


def _run(stage: Stage[Any], work: Work, paradigm: str | None) -> object:
    if not stage.needed(work.config):
        return _found(work)
    try:
        return pipeline.execute(stage, work.config, work.paths, paradigm)
    except CheckFailed as error:
        if error.report is None:
            raise
        # The asset's checks tell the failures, row by row, and block what follows.
        return error.report


def _found(work: Work) -> RawLog:
    """The report of a log that is not made here but read where it lies."""
    events = work.config.events
    path = work.paths.resolve(events.path)
    files = [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return RawLog(events.source, events.path, len(files), sum(file.stat().st_size for file in files))


def _output(stage: Stage[Any], work: Work, paradigm: str | None) -> Path:
    out = work.config.events.path if stage.gives else stage.outs[0]
    return work.paths.resolve(out.format(paradigm=paradigm))


@contextmanager
def _in_one_sentence() -> Iterator[None]:
    """Failures on purpose are told as such, without a retry: the same input would fail again."""
    try:
        yield
    except (InputError, CheckFailed) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def _listed(paths: tuple[str, ...]) -> str:
    return ", ".join(f"`{path}`" for path in paths)


def _code_version(stage: Stage[Any]) -> str:
    """Digest of the stage's package: an asset is marked outdated when the code that makes it has changed."""
    package = _source(stage).parent
    files = sorted(file for file in package.rglob("*") if file.suffix in (".py", ".sql"))
    lines = [f"{file.relative_to(package)} {artifacts.file_digest(file)}" for file in files]
    return hashlib.md5("\n".join(lines).encode()).hexdigest()[:8]


def _code_reference(stage: Stage[Any]) -> dict[str, Any]:
    source = _source(stage)
    name = stage.function.partition(":")[2]
    text = source.read_text(encoding="utf-8")
    found = re.search(rf"^def {name}\b", text, re.MULTILINE)
    line = text.count("\n", 0, found.start()) + 1 if found else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        reference = dg.LocalFileCodeReference(file_path=str(source), line_number=line, label=stage.function)
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference])}


def _source(stage: Stage[Any]) -> Path:
    spec = find_spec(stage.function.partition(":")[0])
    assert spec is not None, stage.function
    assert spec.origin is not None, stage.function
    return Path(spec.origin)


ASSETS = [build(stage) for stage in STAGES]
