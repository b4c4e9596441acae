"""How long is it from the start of a process to its first optimizer step, and what takes the time?

Each training is started twice in a process of its own: `cold` with nothing that was compiled before, neither by torch,
Triton nor numba, and `warm` with all that the first start has left. Weights are random, a bfloat16 checkpoint on the
disk; the store is packed before. What Python imports is in the system's file cache, as after any earlier start.

    python -m benchmarks.first_step                                   # one GPU, three models in both ways: ten minutes
    python -m benchmarks.first_step --only smollm2-135m --trained lora
    python -m benchmarks.first_step --only qwen2.5-1.5b --add         # beside the rows that the result has already
    python -m benchmarks.first_step --tiny                            # the same code on a CPU, to test it
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib import home, llama, one_step
from benchmarks.lib.harness import measured, parser, publish, run
from benchmarks.lib.timing import affordable, gpus
from dti_pipeline.modeling.speed.compiler_cache import TORCH, TRITON
from dti_pipeline.paths import Paths
from dti_pipeline.planning.shape import Shape

MODELS = ("smollm2-135m", "llama-3.2-1b", "qwen2.5-1.5b")
PARADIGM = "dti"
#: The parts that every start has, in their order.
PARTS = ("process", "imports", "data", "weights", "placement", "compilation", "first step")
RANKS = {"lora": 16, "all": 0}


def main() -> None:
    options = parser(__doc__, gpu=True)
    options.add_argument("--only", nargs="+", choices=MODELS, default=MODELS)
    options.add_argument("--trained", nargs="+", choices=tuple(RANKS), default=tuple(RANKS), help="weights")
    options.add_argument("--add", action="store_true", help="keep the result's rows of other trainings")
    options.add_argument("--scratch", type=Path, help="folder for checkpoints and homes (default: a temporary one)")
    given = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() and not given.tiny else "cpu")
    names = (llama.TINY.name,) if given.tiny else given.only
    run([sys.executable, "-c", "import dti_pipeline.training.train, torch._inductor.compile_fx"], Path.cwd())
    rows = []
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        for name in affordable(names, given.budget_seconds):
            shape, folder = llama.shape_named(name), Path(scratch) / name
            home.write_model(folder / "model", shape, device, row_length(given.tiny))
            if device.type == "cuda":
                torch.cuda.empty_cache()
            for trained in given.trained:
                rows += starts(shape, folder, trained, device, given.tiny)
            shutil.rmtree(folder)
    new = {(row["model"], row["trained"]) for row in rows}
    earlier = measured("first_step", given) if given.add else []
    kept = [row for row in earlier if (row["model"], row["trained"]) not in new]
    publish("first_step", rows, given, gpus=gpus(device), kept=kept)


def starts(shape: Shape, folder: Path, trained: str, device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """A cold start and a warm one of the same training."""
    place = folder / trained
    home.write_home(place, sections(folder / "model", trained, device, tiny), shape, 20 if tiny else 400, PARADIGM)
    for variable in (TORCH, TRITON):
        os.environ.pop(variable, None)
    rows = []
    for cache in ("cold", "warm"):
        command = [sys.executable, "-m", one_step.__name__, PARADIGM]
        run(command, place, NUMBA_CACHE_DIR=str(Paths(place).compiled / "numba"))
        found = json.loads((place / one_step.RESULT).read_text())
        parts = {part.replace(" ", "_"): round(found.get(part, 0.0), 2) for part in PARTS}
        gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
        row = {"model": shape.name, "trained": trained, "cache": cache, "seconds": round(found["seconds"], 2)}
        rows.append(row | parts | {"gpu": gpu})
        print(f"{shape.name}, {trained}, {cache}: {found['seconds']:.1f} s", flush=True)
    return rows


def row_length(tiny: bool) -> int:
    return 512 if tiny else 8192


def sections(model: Path, trained: str, device: torch.device, tiny: bool) -> dict[str, Any]:
    """The configuration of a training whose steps have two micro-batches or more."""
    length = row_length(tiny)
    return {
        "packing": {"context": llama.CONTEXT, "targets": 20 if tiny else 50, "row_length": length},
        "split": {"min_history": 1},
        "model": {"name_or_path": str(model), "lora": {"rank": RANKS[trained]}, "head": "verbaliser"},
        "training": {
            "device": device.type,
            "dtype": "float32" if device.type == "cpu" else "bfloat16",
            "targets_per_step": 64 if tiny else 2048,
            "tokens_per_batch": 2 * length,
            "evaluations": 0,
        },
        "tracking": {"enabled": False},
    }


if __name__ == "__main__":
    main()
