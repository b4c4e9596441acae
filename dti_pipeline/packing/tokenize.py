"""Every item text to tokens, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dti_pipeline import artifacts, pretrained
from dti_pipeline.artifacts import Inputs
from dti_pipeline.config import Config, TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events.report import IngestReport
from dti_pipeline.packing import user_texts
from dti_pipeline.packing.report import Knowledge, TokenizeReport
from dti_pipeline.packing.store import ITEMS, SPLITS, write_columns
from dti_pipeline.packing.values import BLOCK, distinct
from dti_pipeline.packing.words import GAPS, filling_in, gaps, render
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
    Cost: one pass over the distinct texts, one over the log; memory: 22 bytes a row, 31 with
    gaps, 4 more with texts of users, and the distinct texts.
    """
    ingested = artifacts.read(paths.events, "ingest", IngestReport)
    require_passed(config, paths)
    inputs = Inputs.of({"events": paths.events})
    gap, columns = "gap" in config.tokens.names, config.tokens.columns
    events = paths.events / "interactions.parquet"
    items, log = _read(events, gap, config.tokens)
    users = user_texts.read(events, config.tokens, log["position"])
    gap_of_row = _gaps(log, config.split.context) if gap else np.int8(0)
    text_of_row, texts = _distinct_texts(items, log.pop("item"), gap_of_row, config.tokens)
    tokenizer = _tokenizer(config.tokens, [*texts, *(users.texts if users else ())])
    before = tokenizer.get_vocab()
    special = _special_tokens(tokenizer)
    added = tokenizer.get_vocab().keys() - before.keys()
    tokens, offsets, cut = encode(tokenizer, texts, config.tokens.max_text_tokens)
    counts: dict[str, int] = {}
    if users:
        log["user_text"] = users.of_row + np.int32(len(texts))
        *of_users, users_cut = encode(tokenizer, users.texts, config.tokens.max_text_tokens, "user")
        tokens, offsets = joined((tokens, offsets), of_users)
        counts = users.counts(of_users[1], users_cut)
    prefix = tokenizer.encode(config.tokens.prefix, add_special_tokens=False) if config.tokens.prefix else []

    # Not the checks: they decide whether there are tokens, not which. A threshold that changes leaves the models valid.
    recorded = config.sections("tokens") | {"split": {"context": config.split.context}}
    split = ingested.config["split"]
    with artifacts.publish(paths.tokens, "tokenize", recorded, inputs) as draft:
        write_columns(draft.path / "texts.arrow", {"token": tokens})
        write_columns(draft.path / "offsets.arrow", {"offset": offsets})
        write_columns(draft.path / "interactions.arrow", {"text": text_of_row, **log})
        tokenizer.save_pretrained(draft.path / "tokenizer")
        pq.write_table(pa.table(_of_items(items, columns)), draft.path / ITEMS)
        lengths = np.diff(offsets)[text_of_row]
        report = draft.report = TokenizeReport(
            interactions=len(text_of_row),
            texts=len(texts),
            texts_cut=cut,
            tokens=int(lengths.sum()) + len(text_of_row),
            tokens_per_interaction=round(float(lengths.mean()) + 1, 4),
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


def _read(path: Path, times: bool, config: TokensConfig) -> tuple[list[tuple[str, ...]], dict[str, np.ndarray]]:
    """Distinct items (id, text, values of columns), as they first occur, and (m,) columns: item (its index), split,
    label, position, request, known and, if asked for, timestamp. A block is read at a time, with strings as codes:
    memory does not grow with them."""
    numbers = {"label": np.int8, "position": np.int32, "request": np.int32, "known": np.int32}
    numbers |= {"timestamp": np.int64} if times else {}
    coded = ["item_id", "item_text", *config.columns, "split"]
    index: dict[tuple[str, ...], int] = {}
    end = 0
    for name in set(config.read_columns).difference(pq.read_schema(path).names):
        key = config.key_of(name)
        raise InputError(f"params key `{key}` names {{{name}}}, which {path} does not have: run `dti ingest` again")
    with pq.ParquetFile(path, read_dictionary=coded) as file:
        kinds = {"item": np.int32, "split": np.int8, **numbers}
        log = {name: np.empty(file.metadata.num_rows, kind) for name, kind in kinds.items()}
        for batch in file.iter_batches(BLOCK, columns=[*coded, *numbers]):
            here = slice(end, end := end + len(batch))
            log["item"][here] = distinct([batch[name] for name in coded[:-1]], index)
            names = pc.index_in(batch["split"].dictionary, pa.array(SPLITS)).to_numpy()
            log["split"][here] = names[batch["split"].indices.to_numpy()]
            if times and batch["timestamp"].null_count:
                raise InputError("the log has no timestamps, which {gap} in params key `tokens.template` needs")
            for name in numbers:
                log[name][here] = batch[name].to_numpy()
    return list(index), log


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


def _gaps(log: dict[str, np.ndarray], context: str) -> np.ndarray:
    """(m,) index into GAPS. Takes the column timestamp out of the log."""
    history = np.arange(len(log["position"])) - log["position"]
    request = history + log["request"]
    opens = np.flatnonzero(request == np.arange(len(request)))
    # A request is made at its earliest time: a later one of its rows may tell what became of that row.
    made = np.minimum.reduceat(log.pop("timestamp"), opens)[np.searchsorted(opens, request)]
    return gaps(made, log["request"] if context == "shown" else log["known"], history)


def _distinct_texts(
    items: list[tuple[str, ...]], item: np.ndarray, gap: np.ndarray | np.int8, config: TokensConfig
) -> tuple[np.ndarray, list[str]]:
    """Text index of each row, (m,), and the texts. An item has one for each title it had and each gap it came after."""
    kind = item * np.int32(len(GAPS)) + gap
    there = np.zeros(len(items) * len(GAPS), bool)
    there[kind] = True
    rendered = []
    with filling_in("tokens.template", config.template):
        for item_of, gap_of in (divmod(k, len(GAPS)) for k in np.flatnonzero(there).tolist()):
            item_id, item_text, *more = items[item_of]
            values = {"gap": GAPS[gap_of], **dict(zip(config.columns, more, strict=True))}
            rendered.append(render(config.template, item_id, item_text, values))
    if "" in rendered:
        raise InputError(f"params key `tokens.template` is {config.template!r}: it leaves items without any text")
    texts = sorted(set(rendered))
    index = {text: i for i, text in enumerate(texts)}
    of_kind = np.zeros(len(there), np.int32)
    of_kind[there] = [index[text] for text in rendered]
    return of_kind[kind], texts


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
