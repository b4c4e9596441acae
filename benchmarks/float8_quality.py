"""Does rounding frozen weights to float8 (`model.frozen_weights`) change the AUC of adapters trained on top?

A base model is trained from scratch by the demo's recipe with `dti`, on half of the targets (whole users, two epochs,
unless asked otherwise), and saved as a checkpoint. LoRA of rank 16 and the rows of [SUM], yes and no are then trained
on all users: on the base as it is, and on it with every frozen linear layer of its decoder rounded; with one seed,
first weights, order of the data and steps. Both score the test targets in single-target prompts. Differences are
paired, with intervals over users; in the last row over users and seeds. On a GPU they are between bfloat16 and its
float8 units; on a CPU between fp32 and the plain product of the rounded numbers, which tests hold the GPU's to.

    python -m benchmarks.float8_quality                 # the demo's log; one thread of a CPU, some minutes
    python -m benchmarks.float8_quality --home FOLDER   # a project's own tokens and params.yaml
    python -m benchmarks.float8_quality --tiny          # a small log, to test it
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from numpy.typing import NDArray

from benchmarks.lib.harness import parser, prepared, publish
from benchmarks.lib.timing import gpus
from benchmarks.lib.training import model_of, ready, rows_of, trainer_of
from dti_pipeline import config
from dti_pipeline.config import Config, LoraConfig
from dti_pipeline.evaluation import bootstrap, metrics
from dti_pipeline.evaluation.predict import TOKENS_PER_BATCH
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.modeling.network.storage import save
from dti_pipeline.modeling.speed import float8
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import DTI
from dti_pipeline.paths import Paths

LORA = LoraConfig(rank=16, alpha=32, target_modules=("q_proj", "v_proj"))
TINY = ("synth.users=40", "synth.interactions_per_user=40", "model.hidden_size=32", "model.intermediate_size=48")


def main() -> None:
    options = parser(__doc__, gpu=True, home=True)
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of adapters and their data order")
    options.add_argument("--base-share", type=float, default=0.5, help="of training targets, by whole users")
    options.add_argument("--base-epochs", type=float, default=2.0)
    options.add_argument("--epochs", type=float, default=3.0, help="of the adapters")
    options.add_argument("--learning-rate", type=float, default=3e-3, help="of the adapters")
    options.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    given = options.parse_args()
    settings = [*(TINY if given.tiny else ()), *given.settings]
    cpu = given.tiny or not torch.cuda.is_available()
    if cpu:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        home = given.home.resolve() if given.home else Path(scratch)
        if not given.home:
            prepared(home, settings)
        bench = Bench(config.load(home / "params.yaml", settings), TokenStore.open(Paths(home).tokens), cpu)
        checkpoint = Path(scratch) / "base"
        base = bench.base(checkpoint, given.base_share, given.base_epochs)
        print(f"base: AUC {bench.auc(base.score):.4f}", flush=True)
        sides = {}
        for seed in given.seeds:
            recipe = {"seed": seed, "epochs": given.epochs, "learning_rate": given.learning_rate}
            plain, rounded = (bench.adapted(checkpoint / "lm", frozen, recipe) for frozen in ("plain", "float8"))
            sides[seed] = plain, rounded
            print(f"seed {seed}: AUC {bench.auc(plain.score):.4f} and {bench.auc(rounded.score):.4f}", flush=True)
    publish("float8_quality", bench.table(base, sides), given, gpus=gpus(bench.device))


@dataclass(frozen=True)
class Trained:
    """One training: scores of the test targets, and its size."""

    score: NDArray[np.float64]
    targets: int  # seen, over all epochs
    steps: int
    rounded: int  # layers in float8


class Bench:
    """One log, its test targets and its trainings."""

    def __init__(self, settings: Config, store: TokenStore, cpu: bool) -> None:
        training = replace(settings.training, evaluations=0, checkpoint_seconds=10**9, cuda_graph=False)
        self.settings = replace(settings, training=replace(training, dtype="float32" if cpu else "bfloat16"))
        self.store, self.cpu = store, cpu
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no" if cpu else "bf16")
        self.device = self.accelerator.device
        self.test, _ = rows_of(self.settings, store, DTI, "test")
        target = np.sort(self.test.first_target)  # single-target prompts, in the order of their scores
        self.label = store.label[target]
        protocol = settings.evaluation
        self.users = bootstrap.Users(np.cumsum(store.position == 0)[target], protocol.bootstrap_samples, protocol.seed)

    def auc(self, probability: NDArray[np.float64]) -> float:
        return metrics.auc(self.label, probability) or 0.0

    def base(self, folder: Path, share: float, epochs: float) -> Trained:
        """Train every weight from scratch, without dropout, on a share of the users, and save the model."""
        every = int(rows_of(self.settings, self.store, DTI)[0].targets().sum())
        settings = replace(
            self.settings,
            packing=replace(self.settings.packing, max_targets=max(1, round(share * every))),
            training=replace(self.settings.training, epochs=epochs),
            model=replace(
                self.settings.model, name_or_path=None, frozen_weights="plain", head="verbaliser", dropout=0.0
            ),
        )
        return self._train(settings, folder)

    def adapted(self, base: Path, frozen: str, recipe: dict[str, Any]) -> Trained:
        """Train adapters on the base, its weights plain or float8."""
        # The option itself is refused on a CPU, where nothing would be faster: _train puts its layers there in place.
        weights = "plain" if self.cpu else frozen
        model = replace(
            self.settings.model, name_or_path=str(base), lora=LORA, head="verbaliser", frozen_weights=weights
        )
        settings = replace(self.settings, model=model, training=replace(self.settings.training, **recipe))
        return self._train(settings, rounds=frozen == "float8")

    def _train(self, settings: Config, folder: Path | None = None, rounds: bool = False) -> Trained:
        training = settings.training
        rows, _ = rows_of(settings, self.store, DTI)
        set_seed(training.seed)
        pooled = self.settings.model.summaries == "pooled"  # of the base; a checkpoint from elsewhere has none
        model = model_of(
            settings, self.store, DTI, prefix_length=len(self.store.prefix), pooled=pooled,
            frozen_dtype=getattr(torch, training.dtype),
        )  # fmt: skip
        if rounds and self.cpu:
            float8.replace(decoder_of(model.lm).layers)
        optimizer = ready(model, self.device, training)
        trainer = trainer_of(model, optimizer, self.accelerator, training, rows)
        trainer.run(lambda: False)
        if folder is not None:
            save(model, folder)
        model.eval()
        autocast = None if self.cpu else torch.bfloat16
        most = settings.evaluation.tokens_per_batch or TOKENS_PER_BATCH[self.device.type]
        _, probability = score(model, self.test, np.arange(len(self.test)), most, self.device, autocast)
        rounded = sum(isinstance(module, float8.Float8Linear) for module in model.modules())
        return Trained(probability, trainer.progress.targets_seen, trainer.progress.step, rounded)

    def table(self, base: Trained, sides: dict[int, tuple[Trained, Trained]]) -> list[dict[str, Any]]:
        """A row a seed, and one over all of them: means, and the interval that counts the luck of a training too."""
        protocol, packing = self.settings.evaluation, self.settings.packing
        samples = [self.users.auc(self.label, y.score) - self.users.auc(self.label, x.score) for x, y in sides.values()]
        spread = [*samples, bootstrap.over_seeds(np.stack(samples), protocol.seed)]
        aucs = np.array([[self.auc(one.score) for one in pair] for pair in sides.values()])
        moved = np.array([np.abs(y.score - x.score).mean() for x, y in sides.values()])
        plain, rounded = next(iter(sides.values()))
        rows = []
        for seed, (of_plain, of_float8), change, drawn in zip(
            [*sides, "all"], [*aucs, aucs.mean(0)], [*moved, moved.mean()], spread, strict=True
        ):
            interval = bootstrap.interval(drawn, protocol.confidence)
            rows.append(
                {
                    "seed": seed,
                    "auc_base": round(self.auc(base.score), 4),
                    "auc_plain": round(of_plain, 4),
                    "auc_float8": round(of_float8, 4),
                    "difference": round(of_float8 - of_plain, 5),
                    "low": round(interval.low, 5) if interval else None,
                    "high": round(interval.high, 5) if interval else None,
                    "mean_change_of_probability": round(change, 5),
                    "layers_rounded": rounded.rounded,
                    "k": packing.targets,
                    "n": packing.context,
                    "base_targets": base.targets,
                    "adapter_targets": plain.targets,
                    "adapter_steps": plain.steps,
                    "test_targets": len(self.label),
                    "test_users": self.users.count,
                }
            )
        return rows


if __name__ == "__main__":
    main()
