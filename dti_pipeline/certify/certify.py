"""``dti certify``: the proofs of the method, asked of a trained model on real rows, and an audit of the files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from dti_pipeline import artifacts, audit, lineage
from dti_pipeline.certify import page
from dti_pipeline.certify.excerpts import Excerpts, draw
from dti_pipeline.certify.proofs import TRAINED_AND_SERVED, Bench, OnPrompts
from dti_pipeline.certify.report import PARTS, Certificate, Proof
from dti_pipeline.certify.served import OnServer
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.events.published import interactions
from dti_pipeline.packing.store import TokenStore, require_events
from dti_pipeline.paths import Paths
from dti_pipeline.serving.scorer import Scorer
from dti_pipeline.training.report import TrainReport

#: Targets are drawn, and words and positions are changed, by it: the same questions every time.
SEED = 7


@dataclass(frozen=True)
class Task:
    """What is to be certified."""

    folder: Path  # of the model
    name: str  # as it was asked for
    rows: int  # targets, of one request each


def certify(config: Config, paths: Paths, task: Task) -> Certificate:
    """Ask a trained model for the proofs on targets of ``evaluation.split``, audit the files that it was made of, and
    publish the certificate in reports/certificates; the model's folder is only read.

    Raises InputError where the home does not hold the log that the model was trained on. Cost: some thirty passes over
    the excerpts, of up to 4 n rows a target, on the GPU where there is one.
    """
    manifest = artifacts.read(task.folder, "train", TrainReport)
    _require_same_log(manifest.inputs["tokens"], paths, task.name)
    scorer, store = Scorer.load(task.folder), TokenStore.open(paths.tokens)
    events = artifacts.read(paths.events, "ingest")
    split, row_length = events.config["split"], int(manifest.report.network["row_length"])
    drawn = draw(store, config.evaluation.split, split["min_history"], task.rows, SEED)
    excerpts = Excerpts.around(store, drawn, scorer.model.context)
    bench = Bench(scorer.model, scorer.device, scorer.autocast, scorer.tokens_per_batch, SEED)
    named = events.config["events"]["columns"].get("request_id") is not None
    # Two requests of one moment know no label of each other, whatever the delay.
    late = (split["feedback_delay"] is not None or named) and split["feedback_until"] is None
    digest = artifacts.folder_digest(task.folder)
    server = OnServer(scorer, bench, excerpts, interactions(paths.events), late, named)
    published = _published(paths, manifest.report.paradigm, digest)
    prompts = OnPrompts(bench, excerpts, row_length, scorer.model.has_prefix)
    found = [*server.evaluated(store, row_length, published), *server, *prompts]
    found += _by_rule(audit.audit(paths.home, task.folder))
    proofs = sorted(found, key=lambda proof: [*PARTS].index(proof.part))
    certificate = Certificate(
        model=task.name,
        model_digest=digest,
        paradigm=manifest.report.paradigm,
        mlflow_run_id=manifest.report.mlflow_run_id,
        passed=all(proof.passed is not False for proof in proofs),
        sentence=_sentence(task.name, proofs),
        targets=len(drawn),
        split=config.evaluation.split,
        seed=SEED,
        events_digest=artifacts.folder_digest(paths.events),
        tokens_digest=manifest.inputs["tokens"],
        device=scorer.device.type,
        compute=bench.compute,
        digits=_digits(proofs),
        streaming_difference=streaming.difference if (streaming := _streaming(proofs)) else None,
        commit=lineage.commit_name(),
        hardware=lineage.hardware(None if scorer.device.type == "cuda" else []),
        proofs=tuple(proofs),
    )
    folder = paths.certificate(certificate.paradigm, digest)
    inputs = {"events": paths.events, "tokens": paths.tokens, "model": task.folder}
    with artifacts.publish(folder, "certify", config.sections("evaluation"), inputs) as draft:
        artifacts.write_json(draft.path / page.JSON, page.plain(certificate))
        artifacts.write_text(draft.path / page.MARKDOWN, page.markdown(certificate))
        draft.report = certificate
    return certificate


def _require_same_log(tokens: str, paths: Paths, name: str) -> None:
    found = artifacts.folder_digest(paths.tokens) if paths.tokens.is_dir() else None
    if found is None:
        raise InputError(f"{paths.tokens} does not exist: a model is certified where the log is that it was trained on")
    if tokens != found:
        raise InputError(
            f"{name} was trained on other tokens than {paths.tokens} holds: it is certified where its own log is"
        )
    require_events(paths)


def _published(paths: Paths, paradigm: str, digest: str) -> dict[int, float]:
    """The scores that ``dti evaluate`` has published of the model with this digest, by row of the log."""
    folder = paths.evaluation(paradigm)
    if not (folder / artifacts.MANIFEST).is_file():
        return {}
    if artifacts.read(folder, "evaluate").inputs["model"] != digest:
        return {}
    found = pq.read_table(folder / "predictions.parquet", columns=["row", "probability"]).to_pydict()
    return dict(zip(found["row"], found["probability"], strict=True))


def _by_rule(checks: Iterable[audit.Check]) -> Iterator[Proof]:
    """The audit with one line a rule, which names the first place where it is broken."""
    of_rule: dict[str, list[audit.Check]] = {}
    for check in checks:
        of_rule.setdefault(check.rule, []).append(check)
    for rule, found in of_rule.items():
        rows, broken = (sum(getattr(check, name) for check in found) for name in ("rows", "broken"))
        wrong = next((check for check in found if check.broken), None)
        where = ", ".join(dict.fromkeys(check.where for check in found))
        if wrong is not None:
            where = wrong.where + (f", row {wrong.first}" if wrong.first is not None else "")
        yield Proof("log", rule, where, rows, broken, None, 0.0, not broken if rows else None)


def _digits(proofs: Iterable[Proof]) -> int | None:
    """Digits behind the point to which all that must be equal is."""
    apart = [proof.difference for proof in proofs if proof.part == "equal" and proof.passed is not None]
    most = max((one for one in apart if one is not None), default=math.inf)
    return max(0, math.floor(-math.log10(most))) if 0 < most < math.inf else None


def _streaming(proofs: Iterable[Proof]) -> Proof | None:
    """The proof that compares the prompts of training with those of a server; none where they are one."""
    return next((proof for proof in proofs if proof.what == TRAINED_AND_SERVED), None)


def _sentence(name: str, proofs: list[Proof]) -> str:
    failed = [proof for proof in proofs if proof.passed is False]
    asked = sum(proof.passed is not None for proof in proofs)
    if failed:
        first = page.failure(failed[0])
        return f"{name} is not certified: {len(failed)} of {asked} proofs fail, first: {first}"
    streaming, digits = _streaming(proofs), _digits(proofs)
    to = f"to {digits} digit{'s' * (digits != 1)} of the logit" if digits is not None else "to the last bit"
    if streaming is None or streaming.passed:
        return f"{name} is certified, {asked} of {asked} proofs hold: served equals trained {to}"
    return (
        f"{name} is certified, {asked} of {asked} proofs hold: served equals evaluated {to}; in the prompts of many"
        f" targets that it was trained on, logits differ by up to {streaming.difference:.2g}, as its paradigm allows"
    )
