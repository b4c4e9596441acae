"""A log whose validation targets stand to its training rows as its test targets do: for choosing a recipe.

    python benchmarks/rehearsal.py HOME PAST --train 0.6

Where a log is split by its order or its time, items age: the test targets of MovieLens-1M's file name items that
training never showed 45 times as often as its validation targets do, which follow the training rows at once. A recipe
chosen on those learns items by heart. PAST is a home with the same log less its test rows: the first ``--train`` of
every user's rows train, HOME's validation targets are the validation targets, and what lies between is context only in
so far as a prompt reaches back to it. No label of a test row is in PAST. HOME must be ingested with
``split.rule: user_order``; then `dti tokenize` and `dti pack` go on in PAST with ``validation.required=false``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # on a bare GPU image nothing is installed

from dti_pipeline import artifacts
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("home", type=Path)
    parse.add_argument("past", type=Path)
    parse.add_argument("--train", type=float, default=0.6, help="share of every user's rows that train")
    options = parse.parse_args()
    rehearse(Paths(options.home), Paths(options.past), options.train)
    if (options.home / "params.yaml").is_file():
        shutil.copy(options.home / "params.yaml", options.past / "params.yaml")


def rehearse(home: Paths, past: Paths, train: float) -> None:
    """Publish the events of ``past``. Rows between training and validation get the test split, which nobody scores."""
    manifest = artifacts.read(home.events, "ingest")
    if manifest.config["split"]["rule"] != "user_order":
        raise InputError("a rehearsal needs a log split by user_order")
    log = pq.read_table(home.events / "interactions.parquet")
    user = log["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    share = log["position"].to_numpy() / np.bincount(user)[user]
    validation = pc.equal(log["split"], "validation").to_numpy()
    split = np.where(validation, "validation", np.where(share < train, "train", "test"))
    kept = pc.not_equal(log["split"], "test")
    log = log.set_column(log.schema.get_field_index("split"), "split", pa.array(split)).filter(kept)
    with artifacts.publish(past.events, "ingest", manifest.config, {"events": home.events}) as draft:
        pq.write_table(log, draft.path / "interactions.parquet", compression="zstd")
        draft.report |= manifest.report


if __name__ == "__main__":
    main()
