"""What each paradigm and each fix is worth: AUC in both test forms, several seeds, one recipe.

    python benchmarks/quality.py HOME --dataset ml-1m --split user_order --workers 6 --runs dti:1,2,3 \\
        --out benchmarks/results/quality.json

HOME is a project home whose log is ingested, validated, tokenised and packed (`dti ingest`, `validate`, `tokenize`,
`pack`). Every run is `dti train` and `dti evaluate` in a home of its own that borrows HOME's data. A run whose row is
in the results already is not made again, unless it failed; a row is the same run only if its configuration is the
same, key for key. With more than one worker the runs share the card, so their seconds say nothing about speed (each
row carries `workers`).

To choose a recipe, on a home that benchmarks/rehearsal.py made, without a look at test targets:

    python benchmarks/quality.py PAST --dataset ml-1m-rehearsal --recipe ml-1m --split user_order --train-only \\
        --fix names_half="model.name_dropout=0.5" --runs dti_isolated:1 dti_isolated:names_half:1 --out trials.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # on a bare GPU image nothing is installed

from dti_pipeline import artifacts, lineage
from dti_pipeline.evaluation.evaluate import learning_curve
from dti_pipeline.study.log import link

#: One recipe for every paradigm, chosen on validation targets only (docs/recipe.md says what was tried).
RECIPES = {
    "ml-1m": (
        "model.hidden_size=128", "model.intermediate_size=256", "model.layers=3", "model.dropout=0.1",
        "training.learning_rate=4e-3", "training.weight_decay=0.3", "training.epochs=4",
        "training.targets_per_step=512", "training.tokens_per_batch=10240", "training.dtype=bfloat16",
        "training.evaluations=3", "training.evaluation_targets=200000",
    ),
    "ml-latest-small": (
        "model.hidden_size=128", "model.intermediate_size=256", "model.layers=3", "model.dropout=0.1",
        "training.learning_rate=2e-3", "training.weight_decay=0.1", "training.epochs=2",
        "training.targets_per_step=256", "training.tokens_per_batch=8192", "training.dtype=bfloat16",
        "training.evaluations=3", "training.evaluation_targets=200000",
    ),
}  # fmt: skip

FIXES = {
    "": (),
    "rope_alibi": ("model.sum_position=rope_alibi",),
    "nope_alibi": ("model.sum_position=nope_alibi",),
    "forget_linear": ("model.forgetting=linear",),
    "forget_linear_half": ("model.forgetting=linear", "model.forgetting_max=0.5"),
    "forget_quadratic": ("model.forgetting=quadratic",),
    "forget_square_root": ("model.forgetting=square_root",),
}

SHOWN = ("validation_curve", "auc", "auc_streaming", "log_loss", "train_seconds", "error")


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    paradigm: str
    fixes: str
    seed: int
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        return "-".join(x for x in (self.paradigm, self.fixes, str(self.seed)) if x)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("home", type=Path)
    parse.add_argument("--dataset", required=True)
    parse.add_argument("--split", required=True, help="what split.rule the home was ingested with")
    parse.add_argument("--recipe", choices=RECIPES, help="default: the data set's")
    parse.add_argument("--runs", nargs="+", required=True, metavar="PARADIGM[:FIX+FIX]:SEEDS",
                       help="for example dti:1,2,3 dti:rope_alibi:1")  # fmt: skip
    parse.add_argument("--fix", action="append", default=[], metavar="NAME=SETTINGS",
                       help="a fix of your own: settings as --set takes them, with spaces between")  # fmt: skip
    parse.add_argument("--train-only", action="store_true", help="no test scores: the validation targets' curve only")
    parse.add_argument("--set", action="append", default=[], help="override the recipe")
    parse.add_argument("--workers", type=int, default=1)
    parse.add_argument("--limit", type=float, default=float("inf"), help="start no run after so many seconds")
    parse.add_argument("--work", type=Path, default=Path("/tmp/quality"))
    parse.add_argument("--commit", help="default: DTI_COMMIT, else git's")
    parse.add_argument("--out", type=Path, required=True)
    options = parse.parse_args()
    begun = time.monotonic()
    for name, _, settings in (fix.partition("=") for fix in options.fix):
        FIXES[name] = tuple(settings.split())
    stages = ("train",) if options.train_only else ("train", "evaluate")
    recipe = (*RECIPES[options.recipe or options.dataset], *options.set)
    done = json.loads(options.out.read_text()) if options.out.is_file() else []
    done = [row for row in done if "error" not in row]
    known = {json.dumps([row["dataset"], row["settings"]]) for row in done}
    wanted = [
        r for r in parse_runs(options.runs, recipe) if json.dumps([options.dataset, list(r.settings)]) not in known
    ]
    writing = threading.Lock()

    def make(run: Run) -> None:
        if time.monotonic() - begun > options.limit:
            return
        row = {
            **execute(run, options.home.resolve(), options.work, options.dataset, stages),
            "workers": options.workers,
        }
        row["split"] = options.split
        row["commit"] = options.commit or str(lineage.commit() or "") or None
        row["command"] = f"python benchmarks/quality.py HOME --dataset {options.dataset} --runs {run_spec(run)}"
        with writing:
            done.append(row)
            artifacts.write_json(options.out, done)
        shown = " ".join(str(row[key]) for key in SHOWN if key in row)
        print(f"{run.name:<34} {shown}", flush=True)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(make, wanted))


def parse_runs(specs: list[str], recipe: tuple[str, ...]) -> list[Run]:
    runs = []
    for spec in specs:
        paradigm, *fixes, seeds = spec.split(":")
        for seed in seeds.split(","):
            name = fixes[0] if fixes else ""
            settings = (f"paradigm={paradigm}", *recipe, *(x for fix in name.split("+") for x in FIXES[fix]),
                        f"training.seed={seed}")  # fmt: skip
            runs.append(Run(paradigm, name, int(seed), settings))
    return runs


def run_spec(run: Run) -> str:
    return ":".join(x for x in (run.paradigm, run.fixes, str(run.seed)) if x)


def execute(run: Run, base: Path, work: Path, dataset: str, stages: Sequence[str]) -> dict[str, Any]:
    """Run the stages in a home that borrows the data; a row of figures, or the error."""
    # One name may stand for other settings in another call, and one log's name for another home.
    which = hashlib.md5(json.dumps([str(base), run.settings]).encode()).hexdigest()[:12]
    home = work / dataset / f"{run.name}-{which}"
    for part in ("events", "tokens", f"shards/{run.paradigm}"):
        link(base / "data" / part, home / "data" / part)
    sets = [x for s in run.settings[1:] for x in ("--set", s)]
    params = ["--params", str(base / "params.yaml")] if (base / "params.yaml").is_file() else []
    environment = {**os.environ, "DTI_HOME": str(home), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    row: dict[str, Any] = {"dataset": dataset, "paradigm": run.paradigm, "fixes": run.fixes, "seed": run.seed,
                           "settings": list(run.settings)}  # fmt: skip
    for stage in stages:
        command = [sys.executable, "-m", "dti_pipeline.cli", stage, "--paradigm", run.paradigm, *params,
                   "--set", "tracking.enabled=false", *sets, "--json"]  # fmt: skip
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if outcome.returncode:
            return row | {"error": outcome.stderr.strip()[-600:]}
        report = json.loads(outcome.stdout.strip().splitlines()[-1])
        row |= figures(stage, report, home, run.paradigm)
    return row


def figures(stage: str, report: dict[str, Any], home: Path, paradigm: str) -> dict[str, Any]:
    """The part of a stage's report that the table shows."""
    if stage == "train":
        shards = artifacts.read(home / "data" / "shards" / paradigm, "pack").report
        keys = ("train_seconds", "targets_per_second", "tokens_per_second", "targets", "epochs", "hardware",
                "validation_auc", "parameters", "loss")  # fmt: skip
        curve = learning_curve(artifacts.read(home / "models" / paradigm, "train"))
        return {"n": shards["context"], "k": shards["targets_per_prompt"], **{key: report[key] for key in keys},
                "validation_curve": [round(point.auc, 5) for point in curve]}  # fmt: skip
    metrics = json.loads((home / "reports" / "evaluation" / paradigm / "metrics.json").read_text())
    return {key: metrics[key] for key in ("auc", "auc_streaming", "log_loss", "gauc")}


if __name__ == "__main__":
    main()
