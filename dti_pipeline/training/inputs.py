"""What a training reads: checked by one process of each machine, so that a large log is not read once a GPU."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist
from accelerate import Accelerator

from dti_pipeline import artifacts, pretrained
from dti_pipeline.artifacts import Inputs
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.packing.store import require_events
from dti_pipeline.paths import Paths

#: So long processes wait for one that reads: a terabyte from a network file system takes hours.
PATIENCE = timedelta(hours=12)


class Said(NamedTuple):
    """What a process tells the others; nothing, where it has read nothing."""

    refusal: str | None = None
    digests: tuple[str, str] | None = None  # of tokens and shards


def checked(config: Config, paths: Paths, paradigm: str, accelerator: Accelerator) -> Inputs:
    """The inputs by name, with their digests. All processes call it together.

    Raises InputError, the same in all of them, where a file is damaged or missing on any machine, or where machines
    hold different files. Cost: a read of every file by the first process of each machine; the others trust it.
    """
    if accelerator.num_processes == 1:
        return _read(config, paths, paradigm, with_base=True)
    inputs, said = None, Said()
    if accelerator.is_local_main_process:
        try:
            inputs = _read(config, paths, paradigm, with_base=accelerator.is_main_process)
            said = Said(digests=(inputs.digests["tokens"], inputs.digests["shards"]))
        except InputError as error:
            said = Said(refusal=str(error))
    everybody = _of_all(said, accelerator.num_processes)
    for one in everybody:
        if one.refusal is not None:
            raise InputError(one.refusal)
    if len({one.digests for one in everybody if one.digests}) > 1:
        raise InputError(f"machines hold different tokens or shards: all of them must see the same {paths.home}")
    if inputs is None:
        artifacts.trust(paths.tokens, "tokenize")
        artifacts.trust(paths.shards(paradigm), "pack")
        if (paths.events / artifacts.MANIFEST).is_file():
            artifacts.trust(paths.events, "ingest")
        inputs = _read(config, paths, paradigm, with_base=False)
    return inputs


def _read(config: Config, paths: Paths, paradigm: str, with_base: bool) -> Inputs:
    """Check and digest. The base model's files are for one process to digest: they are large."""
    found = Inputs.published(tokens=(paths.tokens, "tokenize"), shards=(paths.shards(paradigm), "pack"))
    require_events(paths)
    base = pretrained.on_disk(config.model.name_or_path) if with_base else None
    return found if base is None else found | Inputs.of({"base": base})


def _of_all(own: Said, processes: int) -> list[Said]:
    """What each process says, once the last has said it."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)  # NCCL's would give up after ten minutes
    everybody = [own] * processes
    dist.all_gather_object(everybody, own, group=group)
    dist.destroy_process_group(group)
    return everybody
