"""How fast does one worker turn row plans into batches, and how small are plans beside copied prompts?

A worker memory-maps plan and token store, gathers the tokens of a batch of rows (`Rows.assemble`) and makes tensors of
them (`Batch.of`). One thread, tokens without padding, medians of CPU time over the sampled rows. The log is generated
in MovieLens-1M's shape; `--home FOLDER` measures a log that `dti tokenize` has made.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.harness import log_of, parser, publish
from benchmarks.lib.timing import median_seconds
from dti_pipeline import config
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.plans import plan_rows
from dti_pipeline.packing.reader import Rows, split
from dti_pipeline.packing.store import TokenStore, read_columns, write_columns
from dti_pipeline.paradigms import named

#: Row length and tokens of a batch: short rows, a micro-batch of a large model, one of a small model.
SIZES = ((1024, 8192), (8192, 8192), (8192, 131072))
SAMPLE = 100 * 8192  # tokens of a plan, about
PLANS = {"sliding_window": ("sliding_window", 1), "dti k=50": ("dti", 50), "dti k=all": ("dti", "all")}


def main() -> None:
    options = parser(__doc__, home=True)
    options.add_argument("--interactions", type=int, default=1_000_000, help="of the generated log")
    given = options.parse_args()
    torch.set_num_threads(1)
    store = log_of(given.home, given.interactions // 165, given.interactions)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [measure(name, *size, store, Path(scratch)) for name in PLANS for size in SIZES]
    publish("loader", rows, given)


def measure(name: str, row_length: int, batch_tokens: int, store: TokenStore, scratch: Path) -> dict[str, Any]:
    paradigm, k = PLANS[name]
    settings = config.from_plain(config.Config, {"packing": {"context": 20, "targets": k, "row_length": row_length}})
    _, cut, row = plan_rows(settings, store, named(paradigm), "train")
    path = scratch / "plan.arrow"
    write_columns(path, {"row": row, "start": cut.start, "first_target": cut.first_target, "stop": cut.stop})
    columns = read_columns(path)
    plan = Rows(store, row_length, *(columns[name] for name in ("start", "first_target", "stop", "row")))

    sample = np.random.default_rng(0).permutation(len(plan))[: SAMPLE // row_length]
    batches = split(sample, plan.height(batch_tokens))
    tokens = sum(int((plan.assemble(batch).kind != Kind.PAD).sum()) for batch in batches)
    seconds = median_seconds(lambda: [Batch.of(plan.assemble(batch), store.label) for batch in batches])
    copied = int(cut.length.sum()) * 4  # int32 tokens alone, no padding
    return {
        "plan": name,
        "row_length": row_length,
        "batch_tokens": batch_tokens,
        "prompts": len(cut),
        "tokens": copied // 4,
        "tokens_per_second": round(tokens / seconds),
        "plan_mb": round(path.stat().st_size / 1e6, 2),
        "copied_prompts_mb": round(copied / 1e6, 1),
        "plan_over_copies": round(path.stat().st_size / copied, 5),
    }


if __name__ == "__main__":
    main()
