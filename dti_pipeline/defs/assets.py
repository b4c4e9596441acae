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
from dti_pipeline.paths import PARADIGMS
from dti_pipeline.pipeline import STAGES, Stage

#: One run trains one paradigm (Dagster's default for partitions): a crash of one leaves the others alone, each
#: output has a data version of its own, and the `gpu` pool queues them.
BY_PARADIGM = dg.StaticPartitionsDefinition(list(PARADIGMS))
LOG = "${events.path}"
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


def upstream(stage: Stage) -> list[Stage]:
    """The stages that make what this one reads, in the table's order."""
    return [other for other in STAGES if any(_makes(other, dep) for dep in stage.deps)]


def _makes(stage: Stage, dep: str) -> bool:
    if dep == LOG:
        return stage.name == "synth"
    return any(out == dep or out.startswith(f"{dep}/") for out in stage.outs)


def build(stage: Stage) -> dg.AssetsDefinition:
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
            if stage.name == "train":
                report = training.run(context, pipes, work, context.partition_key)
            else:
                report = _run(stage, work, paradigm)
            context.log.info(metadata.headline(stage.name, report))
            output = _output(stage, work, paradigm)
            judged = checks.judge(stage, report)
            if not any(checks.refuses(result) for result in judged):
                dvc_record.record(stage, work, paradigm, context.log)
            return dg.MaterializeResult(
                metadata=metadata.describe(stage.name, report, output),
                data_version=dg.DataVersion(artifacts.digest(output)),
                check_results=judged,
            )

    return compute


def _run(stage: Stage, work: Work, paradigm: str | None) -> dict[str, Any]:
    if stage.name == "synth" and work.config.events.source != "synthetic":
        return _found(work)
    try:
        return pipeline.execute(stage, work.config, work.paths, paradigm)
    except CheckFailed:
        if stage.name != "validate":
            raise
        # The outcomes are published all the same; the asset's checks tell them, row by row, and block what follows.
        return artifacts.read(work.paths.checks, "validate").report


def _found(work: Work) -> dict[str, Any]:
    """The report of a log that is not made here but read where it lies."""
    events = work.config.events
    path = work.paths.resolve(events.path)
    files = [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return {
        "source": events.source,
        "path": events.path,
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
    }


def _output(stage: Stage, work: Work, paradigm: str | None) -> Path:
    out = work.config.events.path if stage.name == "synth" else stage.outs[0]
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


def _code_version(stage: Stage) -> str:
    """Digest of the stage's package: an asset is marked outdated when the code that makes it has changed."""
    package = _source(stage).parent
    files = sorted(file for file in package.rglob("*") if file.suffix in (".py", ".sql"))
    lines = [f"{file.relative_to(package)} {artifacts.file_digest(file)}" for file in files]
    return hashlib.md5("\n".join(lines).encode()).hexdigest()[:8]


def _code_reference(stage: Stage) -> dict[str, Any]:
    source = _source(stage)
    name = stage.function.partition(":")[2]
    text = source.read_text(encoding="utf-8")
    found = re.search(rf"^def {name}\b", text, re.MULTILINE)
    line = text.count("\n", 0, found.start()) + 1 if found else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        reference = dg.LocalFileCodeReference(file_path=str(source), line_number=line, label=stage.function)
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference])}


def _source(stage: Stage) -> Path:
    spec = find_spec(stage.function.partition(":")[0])
    assert spec is not None, stage.function
    assert spec.origin is not None, stage.function
    return Path(spec.origin)


ASSETS = [build(stage) for stage in STAGES]
