"""``dti items``: the states of a model's items as files that a server maps into memory instead of computing them.

A store belongs to one model, by the digest of its manifest, and knows each text by its tokens: another text is not
found, and its states are made when it is asked for.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap  # unlike np.load it has no way to run code
from numpy.typing import NDArray

from dti_pipeline import artifacts
from dti_pipeline.errors import InputError
from dti_pipeline.serving.item_states import LABELS, ItemStates, States
from dti_pipeline.serving.requests import Item
from dti_pipeline.serving.scorer import Scorer

log = logging.getLogger(__name__)
#: Stores that a home keeps: the champion's, and that of the one before it.
KEPT = 2
#: Characters of a model's digest that name it.
NAME = 12
#: numpy has no bfloat16: its bits are kept as whole numbers.
BITS = {torch.float32: np.float32, torch.bfloat16: np.int16}


@dataclass(frozen=True)
class ItemsReport:
    """A store of item states."""

    model: str  # digest of its manifest
    paradigm: str
    items: int
    texts: int  # distinct
    tokens: int  # whose keys and values are kept, labels among them
    dtype: str
    mib: float
    read: int  # texts whose states an earlier store had


def digest_of(model: Path) -> str:
    """What a store of a model is named by."""
    path = model / artifacts.MANIFEST
    if not path.is_file():
        raise InputError(f"{model} has no {artifacts.MANIFEST}: run `dti train` first")
    return artifacts.file_digest(path)


def make(model: Path, home: Path, most: int | None = None) -> ItemsReport:
    """Make the store of a model in the folder ``home``, of its first ``most`` items; older stores there go but for
    one. What an earlier store of the same model holds is not computed again. Raises InputError for a model whose item
    states depend on more than the item. Cost: one forward pass over each new text; memory: one batch.
    """
    scorer = Scorer.load(model, cache_items=True)
    states, digest = scorer.states, digest_of(model)
    assert states is not None
    target = home / digest[:NAME]
    texts = _texts(scorer, most)
    index = scorer.texts.of(texts)
    tokens = [scorer.texts.tokens[scorer.texts.offsets[i] : scorer.texts.offsets[i + 1]] for i in index]
    distinct = {text.tobytes(): text for text in tokens}
    if target.exists():
        with suppress(InputError):  # damaged, or of an older form: made anew
            states.use(*open_store(target, digest, scorer.device))
    read = sum(name in states.index for name in distinct)
    with artifacts.publish(target, "items", inputs={"model": model}) as draft:
        offsets = np.cumsum([0, *(len(text) + LABELS for text in distinct.values())])
        np.save(draft.path / "tokens.npy", np.concatenate(list(distinct.values())))
        np.save(draft.path / "lengths.npy", np.diff(offsets) - LABELS)
        dtype = _write(draft.path, states, list(distinct.values()), offsets, scorer.tokens_per_batch)
        size = (draft.path / "states.npy").stat().st_size
        report = draft.report = ItemsReport(
            model=digest,
            paradigm=scorer.model.paradigm.name,
            items=len(texts),
            texts=len(distinct),
            tokens=int(offsets[-1]),
            dtype=str(dtype).removeprefix("torch."),
            mib=round(size / 2**20, 2),
            read=read,
        )
    for old in sorted(_stores(home), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old)
    return report


def _stores(home: Path) -> Iterator[Path]:
    return (path.parent for path in home.glob(f"*/{artifacts.MANIFEST}") if not path.parent.name.startswith("."))


def _texts(scorer: Scorer, most: int | None) -> list[str]:
    """The text of each item of the training log."""
    columns = [name for name, of_items in scorer.columns.items() if of_items is None]
    if "gap" in scorer.names or columns:
        names = ", ".join(["gap"] * ("gap" in scorer.names) + columns)
        raise InputError(f"item states cannot be stored: the model's tokens.template names {names}, which is not of"
                         " the item alone")  # fmt: skip
    if not scorer.titles:
        raise InputError(f"item states cannot be stored: {scorer.manifest.path} knows no items")
    return [scorer.render(Item(item_id, None), "") for item_id in list(scorer.titles)[:most]]


def _write(
    folder: Path, states: ItemStates, texts: list[NDArray[np.int32]], offsets: NDArray[np.int64], at_a_time: int
) -> torch.dtype:
    """Write the states of texts, a batch at a time; returns their type."""
    step = max(1, at_a_time // int(np.diff(offsets).max()))
    keys = sums = None
    dtype = torch.float32
    for first in range(0, len(texts), step):
        part = texts[first : first + step]
        found = states.only(part, at_a_time)
        dtype = found.tokens.dtype
        if keys is None or sums is None:
            shape = (int(offsets[-1]), *found.tokens.shape[1:])
            keys = open_memmap(folder / "states.npy", "w+", BITS[dtype], shape)
            sums = open_memmap(folder / "sums.npy", "w+", np.float32, (len(texts), found.sums.shape[1]))
        bits = found.tokens.view(torch.int16) if dtype == torch.bfloat16 else found.tokens
        keys[offsets[first] : offsets[first + len(part)]] = bits.cpu().numpy()
        sums[first : first + len(part)] = found.sums.cpu().numpy()
    for array in (keys, sums):
        assert array is not None
        array.flush()
    return dtype


def start_with(states: ItemStates, model: Path, home: Path) -> None:
    """Let states begin with the store of the model in the folder ``home``, where there is one. One that cannot be used
    is said in the log, and states are made as they are asked for."""
    digest = digest_of(model)
    if not (home / digest[:NAME]).is_dir():
        return
    try:
        states.use(*open_store(home / digest[:NAME], digest, states.device))
    except InputError as error:
        log.warning("item states are made as they are asked for", extra={"fields": {"why": str(error)}})
        return
    log.info("item states are read", extra={"fields": {"texts": len(states.index)}})


def open_store(folder: Path, model: str, device: torch.device) -> tuple[States, dict[bytes, int]]:
    """The states in a folder, mapped into memory, or on a GPU in its own; and which text is which. Raises InputError
    where they are of another model, or damaged. Cost: one read, to check its digests."""
    report = artifacts.read(folder, "items", ItemsReport).report
    if report.model != model:
        raise InputError(f"{folder} holds states of another model: run `dti items` again")
    lengths, tokens = (np.array(open_memmap(folder / name, mode="r")) for name in ("lengths.npy", "tokens.npy"))
    ends = np.cumsum(lengths)
    index = {tokens[a:b].tobytes(): i for i, (a, b) in enumerate(pairwise([0, *ends.tolist()]))}
    # Copied where it is written to, which nobody does: torch warns of memory that cannot be.
    keys, sums = (torch.from_numpy(open_memmap(folder / name, mode="c")) for name in ("states.npy", "sums.npy"))
    if report.dtype == "bfloat16":
        keys = keys.view(torch.bfloat16)
    return States(np.append(0, ends + LABELS * np.arange(1, len(ends) + 1)), keys.to(device), sums.to(device)), index
