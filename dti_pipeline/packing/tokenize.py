"""Every item text to tokens, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dti_pipeline import artifacts
from dti_pipeline.config import Config, TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.packing.store import ITEMS, SPLITS, write_columns
from dti_pipeline.paths import Paths
from dti_pipeline.validation.gate import require_passed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Added to every vocabulary. [YES] and [NO] only where the tokenizer has no single token for the words.
SUM = "[SUM]"
ROLES = {"yes": (" yes", "[YES]"), "no": (" no", "[NO]")}


def tokenize(config: Config, paths: Paths) -> dict[str, Any]:
    """Make the token store of the events that passed validation.

    Texts longer than ``tokens.max_text_tokens`` are cut at the end and counted; a text that is empty, or has no token,
    becomes ``item <id>``, as an item without a title does. Cost: one pass over the distinct texts, one over the log.
    """
    require_passed(config, paths)
    events = pq.read_table(
        paths.events / "interactions.parquet", columns=["item_id", "item_text", "label", "split", "position"]
    )
    text_of_row, texts = _distinct_texts(events, config.tokens)
    tokenizer = _tokenizer(config.tokens, texts)
    special = _special_tokens(tokenizer)
    tokens, offsets, cut = encode(tokenizer, texts, config.tokens.max_text_tokens)
    prefix = tokenizer.encode(config.tokens.prefix, add_special_tokens=False) if config.tokens.prefix else []

    with artifacts.publish(
        paths.tokens, "tokenize", config.sections("tokens"), {"events": paths.events, "checks": paths.checks}
    ) as draft:
        write_columns(draft.path / "texts.arrow", {"token": tokens})
        write_columns(draft.path / "offsets.arrow", {"offset": offsets})
        split = pc.index_in(events["split"], pa.array(SPLITS)).combine_chunks().to_numpy()
        write_columns(
            draft.path / "interactions.arrow",
            {
                "text": text_of_row,
                "label": events["label"].combine_chunks().to_numpy().astype(np.int8),
                "split": split.astype(np.int8),
                "position": events["position"].combine_chunks().to_numpy().astype(np.int32),
            },
        )
        tokenizer.save_pretrained(draft.path / "tokenizer")
        pq.write_table(_catalogue(events), draft.path / ITEMS)
        lengths = np.diff(offsets)
        draft.report |= {
            "interactions": events.num_rows,
            "texts": len(texts),
            "texts_cut": cut,
            "tokens": int(lengths[text_of_row].sum()) + events.num_rows,
            "tokens_per_interaction": round(float(lengths[text_of_row].mean()) + 1, 4),
            "vocabulary": len(tokenizer),
            "special_tokens": special,
            "prefix_tokens": prefix,
        }
    return draft.report


def _distinct_texts(events: pa.Table, config: TokensConfig) -> tuple[np.ndarray, list[str]]:
    """Text index of each row, and the texts. An item that changed its title has a text for each."""
    items = pa.table({"item_id": events["item_id"], "item_text": events["item_text"]})
    keys = items.group_by(["item_id", "item_text"], use_threads=False).aggregate([])
    try:
        rendered = [
            render(config.template, item, text)
            for item, text in zip(keys["item_id"].to_pylist(), keys["item_text"].to_pylist(), strict=True)
        ]
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"params key `tokens.template` is {config.template!r}: it may use {{item_text}} and {{item_id}} only"
        ) from error
    if "" in rendered:
        raise InputError(f"params key `tokens.template` is {config.template!r}: it leaves items without any text")
    texts = sorted(set(rendered))
    index = {text: i for i, text in enumerate(texts)}
    keys = keys.append_column("text", pa.array([index[text] for text in rendered], pa.int32()))
    # A join may reorder rows: carry the row number and sort by it.
    rows = items.append_column("row", pa.array(np.arange(len(items)))).join(keys, ["item_id", "item_text"])
    return rows.sort_by("row")["text"].combine_chunks().to_numpy().astype(np.int32), texts


def _catalogue(events: pa.Table) -> pa.Table:
    """Each item with the text it had in the last row of the log that names it, ordered by id."""
    last = events.group_by("item_id", use_threads=False).aggregate([("item_text", "last")])
    return last.rename_columns({"item_text_last": "item_text"}).select(["item_id", "item_text"]).sort_by("item_id")


def render(template: str, item_id: str, item_text: str | None) -> str:
    """Text of an interaction with an item; one without a text is called by its id."""
    return template.format(item_id=item_id, item_text=(item_text or "").strip() or f"item {item_id}").strip()


def _tokenizer(config: TokensConfig, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    if config.tokenizer is None:
        return _train(config, texts)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(config.tokenizer)
    except (OSError, ValueError) as error:
        raise InputError(
            f"params key `tokens.tokenizer`: no tokenizer at {config.tokenizer!r} ({str(error).splitlines()[0]})"
        ) from error


def _train(config: TokensConfig, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """Byte-level BPE on the item texts: nothing is out of vocabulary, frequent words are one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=["[PAD]", SUM, "[YES]", "[NO]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [*texts, config.prefix] if config.prefix else texts
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", extra_special_tokens=[SUM, "[YES]", "[NO]"]
    )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Ids of [PAD], [SUM], yes and no; what the vocabulary lacks is added to it."""
    tokenizer.add_tokens([SUM], special_tokens=True)
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere: any token can stand for it, and a new one would grow the embeddings.
        tokenizer.pad_token = tokenizer.eos_token or SUM
    ids = {"pad": int(tokenizer.pad_token_id), "sum": int(tokenizer.convert_tokens_to_ids(SUM))}
    for role, (word, token) in ROLES.items():
        pieces = tokenizer.encode(word, add_special_tokens=False)
        if token in tokenizer.get_vocab() or len(pieces) != 1:
            tokenizer.add_tokens([token], special_tokens=True)
            pieces = [tokenizer.convert_tokens_to_ids(token)]
        ids[role] = int(pieces[0])
    return ids


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_text_tokens: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokens end to end, (t + 1,) offsets, and how many texts were longer than ``max_text_tokens`` and were cut.
    Raises InputError for a text of which the tokenizer makes nothing."""
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    for text, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise InputError(f"the tokenizer makes no token of the item text {text!r}")
    cut = sum(len(ids) > max_text_tokens for ids in encoded)
    kept = [ids[:max_text_tokens] for ids in encoded]
    offsets = np.zeros(len(kept) + 1, np.int64)
    np.cumsum([len(ids) for ids in kept], out=offsets[1:])
    return np.concatenate(kept).astype(np.int32), offsets, cut


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer a store or a model was made with."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "tokenizer")
