"""Every item text to tokens, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dti_pipeline import artifacts, pretrained
from dti_pipeline.artifacts import Inputs
from dti_pipeline.config import Config, TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events.report import IngestReport
from dti_pipeline.execution import tasks
from dti_pipeline.packing.log_columns import Log
from dti_pipeline.packing.report import Knowledge, TokenizeReport
from dti_pipeline.packing.store import ITEMS, write_columns
from dti_pipeline.packing.user_texts import rendered
from dti_pipeline.packing.words import GAPS, filling_in, render
from dti_pipeline.paths import Paths
from dti_pipeline.validation.requirement import require_passed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Added to every vocabulary. [YES] and [NO] only where the tokenizer has no single token for the words.
SUM = "[SUM]"
ROLES = {"yes": (" yes", "[YES]"), "no": (" no", "[NO]")}


def tokenize(config: Config, paths: Paths) -> TokenizeReport:
    """Make the token store of the events that passed validation.

    Texts longer than ``tokens.max_text_tokens`` are cut at the end and counted; an empty one becomes ``item <id>``.
    Cost: one pass over the distinct texts, one over the log, in tasks of spans of users. Memory: that of a span, and
    the distinct texts.
    """
    ingested = artifacts.read(paths.events, "ingest", IngestReport)
    require_passed(config, paths)
    inputs = Inputs.of({"events": paths.events})
    split = ingested.config["split"]
    # Not the checks: they decide whether there are tokens, not which. A threshold that changes leaves the models valid.
    recorded = config.sections("tokens") | {"split": {"context": config.split.context}}
    with (
        tasks.engine(config.execution),
        artifacts.publish(paths.tokens, "tokenize", recorded, inputs) as draft,
        artifacts.aside(paths.tokens) as scratch,
    ):
        log = Log.read(paths.events / "interactions.parquet", config, scratch)
        texts, text_of_kind = _texts_of_items(log, config.tokens)
        user_texts, text_of_user = _texts_of_users(log, config.tokens)
        tokenizer = _tokenizer(config.tokens, [*texts, *user_texts])
        before = tokenizer.get_vocab()
        special = _special_tokens(tokenizer)
        added = tokenizer.get_vocab().keys() - before.keys()
        tokens, offsets, cut = encode(tokenizer, texts, config.tokens.max_text_tokens)
        lengths = np.diff(offsets)
        counts: dict[str, int] = {}
        if user_texts:
            *of_users, users_cut = encode(tokenizer, user_texts, config.tokens.max_text_tokens, "user")
            tokens, offsets = joined((tokens, offsets), of_users)
            counts = {
                "user_texts": len(user_texts),
                "user_texts_cut": users_cut,
                "users_without_text": log.users_of(text_of_user == 0) if not user_texts[0] else 0,
                "longest_user_text": int(np.diff(of_users[1]).max()),
            }
        prefix = tokenizer.encode(config.tokens.prefix, add_special_tokens=False) if config.tokens.prefix else []
        write_columns(draft.path / "texts.arrow", {"token": tokens})
        write_columns(draft.path / "offsets.arrow", {"offset": offsets})
        log.write(draft.path / "interactions.arrow", text_of_kind, text_of_user + np.int32(len(texts)))
        tokenizer.save_pretrained(draft.path / "tokenizer")
        pq.write_table(pa.table(_of_items(log.items, config.tokens.columns)), draft.path / ITEMS)
        of_texts = log.sum(lengths[text_of_kind])
        report = draft.report = TokenizeReport(
            interactions=log.rows,
            texts=len(texts),
            texts_cut=cut,
            tokens=of_texts + log.rows,
            tokens_per_interaction=round(of_texts / log.rows + 1, 4),
            vocabulary=max(tokenizer.get_vocab().values()) + 1,
            special_tokens=special,
            new_label_words=tuple(token for _, token in ROLES.values() if token in added),
            prefix_tokens=tuple(prefix),
            knowledge=Knowledge(
                split["feedback_delay"], config.split.context, split["ties"], ingested.report.whole_seconds
            ),
            **counts,
        )
    return report


def _texts_of_items(log: Log, config: TokensConfig) -> tuple[list[str], NDArray[np.int32]]:
    """Distinct texts, sorted, and the index of each kind's. An item has one for each title it had and each gap that it
    came after."""
    found = []
    with filling_in("tokens.template", config.template):
        for item, gap in log.kinds:
            item_id, item_text, *more = log.items[item]
            values = {"gap": GAPS[gap], **dict(zip(config.columns, more, strict=True))}
            found.append(render(config.template, item_id, item_text, values))
    if "" in found:
        raise InputError(f"params key `tokens.template` is {config.template!r}: it leaves items without any text")
    texts = sorted(set(found))
    place = {text: i for i, text in enumerate(texts)}
    return texts, np.array([place[text] for text in found], np.int32)


def _texts_of_users(log: Log, config: TokensConfig) -> tuple[list[str], NDArray[np.int32]]:
    """Likewise of users, by their values; none without a template."""
    if config.user_template is None:
        return [], np.zeros(0, np.int32)
    return rendered(config.user_template, config.user_columns, log.users)


def _of_items(items: list[tuple[str, ...]], columns: Sequence[str]) -> dict[str, list[str]]:
    """What a server may look up by an item's id: its text, the one that came up last, and of ``columns`` those that
    have one value for an item wherever it occurs. Any other is of the interaction, and for the request to tell."""
    last = {item[0]: item for item in items}
    ids = sorted(last)
    found = {"item_id": ids, "item_text": [last[one][1] for one in ids]}
    for place, name in enumerate(columns, 2):
        if all(item[place] == last[item[0]][place] for item in items):
            found[name] = [last[one][place] for one in ids]
    return found


def _tokenizer(config: TokensConfig, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    if config.tokenizer is None:
        return _train(config, texts)
    from transformers import AutoTokenizer

    source = pretrained.source(config.tokenizer, "tokens.tokenizer")
    try:
        return AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
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
        one = None if token in tokenizer.get_vocab() else behind_a_text(tokenizer, word)
        if one is None:
            tokenizer.add_tokens([token], special_tokens=True)
            one = int(tokenizer.convert_tokens_to_ids(token))
        ids[role] = one
    new = tokenizer.get_added_vocab().keys() & {SUM, *(token for _, token in ROLES.values())}
    numbers = {tokenizer.convert_tokens_to_ids(token) for token in new}
    for token, number in tokenizer.get_vocab().items():
        if number in numbers and token not in new:
            raise InputError(
                f"params key `tokens.tokenizer`: its vocabulary has gaps, so that a new token would be {token!r} too"
            )
    return ids


def behind_a_text(tokenizer: PreTrainedTokenizerBase, word: str) -> int | None:
    """The one token that ``word``, which begins with a space, is behind a text; None where it is several, or unknown.
    Alone it may be another: some tokenizers put a mark of their own before what they are given."""
    text, both = (tokenizer.encode(x, add_special_tokens=False) for x in ("a", "a" + word))
    one = both[-1] if both[:-1] == text else None
    return None if one == tokenizer.unk_token_id else one


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_text_tokens: int, of: str = "item"
) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokens end to end, (t + 1,) offsets, and how many texts were longer than ``max_text_tokens`` and were cut.
    Raises InputError for a text of which the tokenizer makes nothing, unless it is a user's and empty."""
    # A title may read "[SUM]": it is text all the same.
    options = {"add_special_tokens": False, "return_attention_mask": False, "split_special_tokens": True}
    encoded = tokenizer(texts, **options)["input_ids"]
    for text, ids in zip(texts, encoded, strict=True):
        if not ids and (text or of == "item"):
            raise InputError(f"the tokenizer makes no token of the {of} text {text!r}")
    kept = [ids[:max_text_tokens] for ids in encoded]
    cut = sum(len(ids) > max_text_tokens for ids in encoded)
    offsets = np.cumsum([0, *map(len, kept)], dtype=np.int64)
    return np.concatenate(kept).astype(np.int32), offsets, cut


def joined(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and offsets of texts and then of others."""
    return np.concatenate([one[0], other[0]]), np.concatenate([one[1], one[1][-1] + other[1][1:]])


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer a store or a model was made with."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
