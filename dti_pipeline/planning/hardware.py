"""Peak arithmetic and memory of GPUs, by name, from their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from dti_pipeline.errors import InputError
from dti_pipeline.plain import nearest


@dataclass(frozen=True)
class Gpu:
    """One accelerator."""

    name: str
    teraflops: float  # peak of dense bfloat16 matrix products with fp32 accumulation, 10^12 FLOP/s
    memory_gb: float  # 10^9 bytes


#: NVIDIA data sheets: H100 and H200 (SXM) list 1,979 TFLOP/s, L40S 733, L4 242, B200 (HGX) 4,500 with 2:4 sparsity,
#: which dense training does not have; half of that is here. A100 (SXM) lists 312 dense.
GPUS = {
    "B200": Gpu("B200", 2250, 180),
    "H200": Gpu("H200", 989, 141),
    "H100": Gpu("H100", 989, 80),
    "A100": Gpu("A100", 312, 80),
    "A100-40GB": Gpu("A100-40GB", 312, 40),
    "L40S": Gpu("L40S", 362, 48),
    "L4": Gpu("L4", 121, 24),
}


def named(name: str) -> Gpu:
    """A GPU by name, in any case. Raises InputError that lists the known ones."""
    found = {known.upper(): gpu for known, gpu in GPUS.items()}.get(name.upper())
    if found is None:
        raise InputError(f"unknown GPU {name!r}: use one of {', '.join(GPUS)}{nearest(name.upper(), list(GPUS))}")
    return found
