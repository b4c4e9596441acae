"""The asset graph: one asset for each stage of :mod:`dti_pipeline.pipeline`, its noun for a name.

Without ``from __future__ import annotations``: Dagster reads the annotations of an asset function as they stand.
"""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from dti_pipeline import artifacts, config, lineage, pipeline
from dti_pipeline.defs import checks, dvc_record, metadata, processes, training
from dti_pipeline.defs.automation import CONDITIONS
from dti_pipeline.defs.resources import Project, Work
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.events.report import RawLog
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import STAGES, Stage, upstream

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
#: One run at a time in each pool (dagster.yaml). `gpu`, `duckdb`: memory for one. `dvc`: the others are short and end
#: with a commit that locks the repository.
POOLS = defaultdict(lambda: "dvc", ingest="duckdb", validate="duckdb", train="gpu", evaluate="gpu")
#: Read where each step is a pod or a job of Ray's (docs/howto/kubernetes.md and cluster.md): what uses a GPU asks the
#: cluster for one.
ASKS_FOR_GPU = {
    "dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": 1}}}},
    "dagster-ray/config": {"num_gpus": 1},
}


def listed() -> tuple[str, ...]:
    """`paradigms` of params.yaml when Dagster loads its definitions; all there are where the file is wrong, which each
    step then says."""
    try:
        return config.load(Paths.from_env().params).paradigms
    except InputError:
        return names()


def assets(paradigms: Sequence[str]) -> list[dg.AssetsDefinition]:
    """An asset a stage; those of one paradigm have ``paradigms`` as partitions. One run trains one: a crash leaves the
    others alone, and the `gpu` pool queues them."""
    by_paradigm = dg.StaticPartitionsDefinition(list(paradigms))
    return [build(stage, by_paradigm if stage.per_paradigm else None) for stage in STAGES]


def build(stage: Stage[Any], partitions: dg.StaticPartitionsDefinition | None) -> dg.AssetsDefinition:
    """A stage as an asset: run it, then say what came out, check it, and let DVC know."""
    makes = ", ".join(f"`{path}`" for path in stage.outs)

    @dg.asset(
        name=stage.asset,
        deps=[other.asset for other in upstream(stage)],
        partitions_def=partitions,
        description=f"{stage.summary}\n\nCommand line: `dti {stage.name}`. Makes: {makes}.",
        group_name="dti",
        owners=["team:ctr"],
        kinds=KINDS[stage.name],
        metadata=code_reference(stage),
        code_version=code_version(stage),
        pool=POOLS[stage.name],
        op_tags=ASKS_FOR_GPU if POOLS[stage.name] == "gpu" else None,
        automation_condition=CONDITIONS.get(stage.name),
        check_specs=checks.specs(stage),
    )
    def compute(
        context: dg.AssetExecutionContext, project: Project, pipes: dg.PipesSubprocessClient
    ) -> dg.MaterializeResult:
        try:
            return _materialize(stage, context, project.open(), pipes)
        except (InputError, CheckFailed) as error:
            # Failed on purpose: told as such, without a retry, since the same input would fail again.
            raise dg.Failure(description=str(error), allow_retries=False) from None

    return compute


def _materialize(
    stage: Stage[Any], context: dg.AssetExecutionContext, work: Work, pipes: dg.PipesSubprocessClient
) -> dg.MaterializeResult:
    processes.sign(context)
    paradigm = context.partition_key if stage.per_paradigm else None
    # One that is told runs in a process of its own.
    report = training.run(context, pipes, work, str(paradigm)) if stage.told else _run(stage, work, paradigm)
    context.log.info(metadata.headline(report))
    output = work.paths.resolve(work.config.events.path) if stage.gives else stage.output(work.paths, paradigm)
    checked = checks.results(stage, report)
    if all(result.passed or result.severity == dg.AssetCheckSeverity.WARN for result in checked):
        dvc_record.record(stage, work, paradigm, context.log)
    return dg.MaterializeResult(
        metadata=metadata.describe(report, output),
        data_version=dg.DataVersion(artifacts.digest(output)),
        check_results=checked,
    )


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
    """The report of a log that is not made here but read where it lies, or copied from a store."""
    from dti_pipeline.events import remote  # reading a log needs libraries that Dagster's page does without

    events = work.config.events
    remote.bring(events, work.paths)
    path = work.paths.resolve(events.path)
    sizes = [file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()]
    return RawLog(events.source, events.path, len(sizes), sum(sizes))


def _source(stage: Stage[Any]) -> tuple[Path, str]:
    """The file of a stage's function, and the function's name."""
    module, _, name = stage.function.partition(":")
    return lineage.SOURCE.parent.joinpath(*module.split(".")).with_suffix(".py"), name


def code_version(stage: Stage[Any]) -> str:
    """Digest of the stage's package: an asset is marked outdated when the code that makes it has changed."""
    package = _source(stage)[0].parent
    files = sorted(file for file in package.rglob("*") if file.suffix in (".py", ".sql"))
    lines = [f"{file.relative_to(package)} {artifacts.file_digest(file)}" for file in files]
    return hashlib.md5("\n".join(lines).encode()).hexdigest()[:8]


def code_reference(stage: Stage[Any]) -> dict[str, Any]:
    """Metadata that leads to the stage's function."""
    source, name = _source(stage)
    above, _, _ = source.read_text(encoding="utf-8").partition(f"\ndef {name}(")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        reference = dg.LocalFileCodeReference(
            file_path=str(source), line_number=above.count("\n") + 2, label=stage.function
        )
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference])}
