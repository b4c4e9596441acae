"""A complete report of every stage, for tests to change what they are about: ``replace(reports.TRAIN, loss=None)``."""

from __future__ import annotations

from dti_pipeline.evaluation.report import (
    Compared,
    Comparison,
    Decision,
    Delta,
    Evaluation,
    Figures,
    Forms,
    PromptShape,
    Protocol,
    Slices,
    Speed,
)
from dti_pipeline.events.report import CatalogueCounts, FileCounts, IngestReport, OtherFiles, SplitCounts, SynthReport
from dti_pipeline.packing.report import Knowledge, PackReport, PlanReport, TokenizeReport
from dti_pipeline.plain import part_of
from dti_pipeline.training.report import Texts, TrainingSummary, TrainReport
from dti_pipeline.validation.report import SuiteCounts, ValidateReport

RUN = "a" * 32  # of MLflow
DIGEST = "0123456789abcdef0123456789abcdef"

SYNTH = SynthReport(
    rows=100, kept=90, quarantined=6, duplicates=4, reasons={"rating missing": 6}, users=9, items=40, label_rate=0.5,
    test_targets=9, best_possible_auc=0.9,
)  # fmt: skip
INGEST = IngestReport(
    read=100, kept=90, quarantined=6, duplicates=4, rows_left_out=0, users_left_out=0, users=9, items=40,
    label_rate=0.5, untitled=0, untitled_items=0, first_time=1, last_time=2, whole_seconds=True,
    splits={name: SplitCounts(30, 30, 0.5) for name in ("train", "validation", "test")},
    files={"ratings.csv": FileCounts(100, 6)}, reasons={"rating missing": 6}, catalogue=CatalogueCounts(),
    other_files=OtherFiles(), clock=True, rating_scale=(1.0, 5.0),
)  # fmt: skip
VALIDATE = ValidateReport(
    success=True, expectations=8, failed=0,
    suites={name: SuiteCounts(2, 0) for name in ("raw", "canonical", "splits", "batch")},
    failures=(), profile=None, compared_with=None, drift="nothing to compare with",
    rows_in_requests=0, largest_request=1, younger_than={"a minute": 0.05}, label_ages="5.0% are younger than a minute",
    warning=None,
)  # fmt: skip
TOKENIZE = TokenizeReport(
    interactions=90, texts=40, texts_cut=0, tokens=400, tokens_per_interaction=4.4, vocabulary=94,
    special_tokens={"pad": 0, "sum": 1, "yes": 2, "no": 3}, prefix_tokens=(),
    knowledge=Knowledge(),
)  # fmt: skip
PLAN = PlanReport(
    targets=90, targets_in_log=90, dropped=0, dropped_reason=None, targets_per_prompt=50, prompts=9,
    prompts_cut_by_row=0, rows=7, tokens=900, tokens_per_target=10.0, padding_share=0.1,
)  # fmt: skip
PACK = PackReport(**vars(PLAN), paradigm="dti", context=20, row_length=1024, plans={"train": PLAN, "test": PLAN})
TRAIN = TrainReport(
    paradigm="dti", train_seconds=20.0, processor_seconds=20.0, targets=2000, targets_unique=1000, tokens=90_000,
    targets_per_second=100.0, tokens_per_second=4500.0, tokens_per_target=45.0, padding_share=0.1, steps=40, epochs=2.0,
    seed=7, loss=0.5,
    validation_auc=0.72, parameters=1234, parameters_trained=1234, device="cpu", hardware="a machine, 2 cores",
    world_size=1, peak_memory_gib=0.5, mlflow_run_id=RUN, network={}, execution={},
    texts=Texts("{item_text}", 32, (), Knowledge()),
    fallbacks=(),
)  # fmt: skip
SUMMARY = TrainingSummary(**part_of(TRAIN, TrainingSummary))
FIGURES = Figures(
    auc=0.75, log_loss=0.6, gauc=0.7, gauc_users=9, gauc_users_skipped=0, ne=0.9, f1=0.7, accuracy=0.7, brier=0.2,
    ece=0.01, mean_prediction=0.5, predicted_over_observed=1.0, auc_interval=(0.7, 0.8),
)  # fmt: skip
PROMPTS = PromptShape(20, 50)
SLICES = Slices((), ())
EVALUATION = Evaluation(
    paradigm="dti", split="test", targets=90, users=9, users_in_training=9, click_rate=0.5, auc=0.75, log_loss=0.6,
    gauc=0.7, ne=0.9, f1=0.7, accuracy=0.7, ece=0.01, auc_streaming=0.76, forms=Forms(FIGURES, FIGURES), slices=SLICES,
    scoring={}, training=SUMMARY, prompts=PROMPTS,
)  # fmt: skip
COMPARED = Compared(**vars(FIGURES), **vars(SUMMARY), auc_streaming=0.76, prompts=PROMPTS, slices=SLICES)
COMPARISON = Comparison(
    delay=3600.0,
    dataset="synthetic", commit=None, hardware="cpu",
    protocol=Protocol(
        source="synthetic", rule="global_time", split="test", targets=90, users=200, users_in_training=200,
        click_rate=0.5, context=20, threshold=0.5, bootstrap_samples=100, confidence=0.95, seed=7, margin=0.01,
        events=DIGEST,
    ),
    paradigms={"dti": COMPARED}, baselines={"item_rate": 0.7, "item_and_user_rate": None}, floors={},
    best_possible_auc=None, best_possible=None, speedup={"dti": 5.0},
    speed={"dti": Speed(5.0, 5.1, 6.0, True)}, same_time={}, auc_delta={"dti": Delta(0.01, 0.0, 0.02)},
    floor_delta={"dti": {"item_rate": Delta(0.05, 0.01, 0.1)}}, streaming_delta={},
    gate={"dti": Decision(True, "is above every floor")}, champion="dti", notes=(), verdict={"dti": "dti is good."},
)  # fmt: skip
REPORTS = {
    "synth": SYNTH, "ingest": INGEST, "validate": VALIDATE, "tokenize": TOKENIZE, "pack": PACK, "train": TRAIN,
    "evaluate": EVALUATION, "compare": COMPARISON,
}  # fmt: skip
