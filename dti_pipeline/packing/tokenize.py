"""Every item text to tokens, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dti_pipeline import artifacts
from dti_pipeline.config import Config, TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.packing.report import Knowledge, TokenizeReport
from dti_pipeline.packing.store import ITEMS, SPLITS, write_columns
from dti_pipeline.paths import Paths
from dti_pipeline.validation.requirement import require_passed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Added to every vocabulary. [YES] and [NO] only where the tokenizer has no single token for the words.
SUM = "[SUM]"
ROLES = {"yes": (" yes", "[YES]"), "no": (" no", "[NO]")}
#: Rows of the log read at a time.
BLOCK = 1 << 18


def tokenize(config: Config, paths: Paths) -> TokenizeReport:
    """Make the token store of the events that passed validation.

    Texts longer than ``tokens.max_text_tokens`` are cut at the end and counted; an empty one becomes ``item <id>``.
    Cost: one pass over the distinct texts, one over the log; memory: 18 bytes a row and the distinct texts.
    """
    require_passed(config, paths)
    items, log = _read(paths.events / "interactions.parquet")
    text_of_item, texts = _distinct_texts(items, config.tokens.template)
    text_of_row = text_of_item[log.pop("item")]
    tokenizer = _tokenizer(config.tokens, texts)
    special = _special_tokens(tokenizer)
    tokens, offsets, cut = encode(tokenizer, texts, config.tokens.max_text_tokens)
    prefix = tokenizer.encode(config.tokens.prefix, add_special_tokens=False) if config.tokens.prefix else []

    # Not the checks: they decide whether there are tokens, not which. A threshold that changes leaves the models valid.
    recorded = config.sections("tokens") | {"split": {"context": config.split.context}}
    split = artifacts.read(paths.events, "ingest").config["split"]
    with artifacts.publish(paths.tokens, "tokenize", recorded, {"events": paths.events}) as draft:
        write_columns(draft.path / "texts.arrow", {"token": tokens})
        write_columns(draft.path / "offsets.arrow", {"offset": offsets})
        write_columns(draft.path / "interactions.arrow", {"text": text_of_row, **log})
        tokenizer.save_pretrained(draft.path / "tokenizer")
        titles = dict(sorted(dict(items).items()))  # of each item the one that came up last
        pq.write_table(pa.table({"item_id": list(titles), "item_text": list(titles.values())}), draft.path / ITEMS)
        lengths = np.diff(offsets)[text_of_row]
        report = draft.report = TokenizeReport(
            interactions=len(text_of_row),
            texts=len(texts),
            texts_cut=cut,
            tokens=int(lengths.sum()) + len(text_of_row),
            tokens_per_interaction=round(float(lengths.mean()) + 1, 4),
            vocabulary=len(tokenizer),
            special_tokens=special,
            prefix_tokens=tuple(prefix),
            knowledge=Knowledge(split["feedback_delay"], config.split.context, split["ties"]),
        )
    return report


def _read(path: Path) -> tuple[list[tuple[str, str]], dict[str, np.ndarray]]:
    """Distinct pairs of item id and text, as they first occur, and (m,) columns: item (a pair's index), split, label,
    position, request, known. A block is read at a time, with strings as codes: memory does not grow with them."""
    numbers = {"label": np.int8, "position": np.int32, "request": np.int32, "known": np.int32}
    coded = ["item_id", "item_text", "split"]
    index: dict[tuple[str, str], int] = {}
    end = 0
    with pq.ParquetFile(path, read_dictionary=coded) as file:
        kinds = {"item": np.int32, "split": np.int8, **numbers}
        log = {name: np.empty(file.metadata.num_rows, kind) for name, kind in kinds.items()}
        for batch in file.iter_batches(BLOCK, columns=[*coded, *numbers]):
            here = slice(end, end := end + len(batch))
            log["item"][here] = _items(batch["item_id"], batch["item_text"], index)
            names = pc.index_in(batch["split"].dictionary, pa.array(SPLITS)).to_numpy()
            log["split"][here] = names[batch["split"].indices.to_numpy()]
            for name in numbers:
                log[name][here] = batch[name].to_numpy()
    return list(index), log


def _items(ids: pa.DictionaryArray, texts: pa.DictionaryArray, index: dict[tuple[str, str], int]) -> np.ndarray:
    """Index of each row's item; pairs that were not seen before are added to ``index``."""
    many = len(texts.dictionary)
    codes = ids.indices.to_numpy().astype(np.int64) * many + texts.indices.to_numpy()
    pairs, inverse = np.unique(codes, return_inverse=True)
    names, titles = ids.dictionary.to_pylist(), texts.dictionary.to_pylist()
    found = [index.setdefault((names[p // many], titles[p % many]), len(index)) for p in pairs.tolist()]
    return np.array(found, np.int32)[inverse]


def _distinct_texts(items: list[tuple[str, str]], template: str) -> tuple[np.ndarray, list[str]]:
    """Text index of each item, and the texts. An item that changed its title has a text for each."""
    key = f"params key `tokens.template` is {template!r}"
    try:
        rendered = [render(template, item, text) for item, text in items]
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{key}: it may use {{item_text}} and {{item_id}} only") from error
    if "" in rendered:
        raise InputError(f"{key}: it leaves items without any text")
    texts = sorted(set(rendered))
    index = {text: i for i, text in enumerate(texts)}
    return np.array([index[text] for text in rendered], np.int32), texts


def render(template: str, item_id: str, item_text: str | None) -> str:
    """Text of an interaction with an item; one without a text is called by its id."""
    return template.format(item_id=item_id, item_text=(item_text or "").strip() or f"item {item_id}").strip()


def _tokenizer(config: TokensConfig, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    if config.tokenizer is None:
        return _train(config, texts)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(config.tokenizer, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"params key `tokens.tokenizer`: no tokenizer at {config.tokenizer!r} ({reason})") from error


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
    tokenizer.train_from_iterator([*texts, config.prefix] if config.prefix else texts, trainer)
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
    # A title may read "[SUM]": it is text all the same.
    options = {"add_special_tokens": False, "return_attention_mask": False, "split_special_tokens": True}
    encoded = tokenizer(texts, **options)["input_ids"]
    if [] in encoded:
        raise InputError(f"the tokenizer makes no token of the item text {texts[encoded.index([])]!r}")
    kept = [ids[:max_text_tokens] for ids in encoded]
    cut = sum(len(ids) > max_text_tokens for ids in encoded)
    offsets = np.cumsum([0, *map(len, kept)], dtype=np.int64)
    return np.concatenate(kept).astype(np.int32), offsets, cut


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer a store or a model was made with."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
