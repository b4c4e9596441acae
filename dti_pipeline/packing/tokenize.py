"""Every item text to tokens, once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dti_pipeline import artifacts
from dti_pipeline.artifacts import Inputs, Manifest
from dti_pipeline.config import Config, TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events import published
from dti_pipeline.events.report import IngestReport
from dti_pipeline.execution import tasks
from dti_pipeline.packing.log_columns import Log
from dti_pipeline.packing.report import Knowledge, TokenizedLoad, TokenizeReport
from dti_pipeline.packing.settings import RATES
from dti_pipeline.packing.store import ITEMS, read_columns, write_columns, write_parts
from dti_pipeline.packing.user_texts import rendered
from dti_pipeline.packing.vocabulary import ROLES, encode, load_trained, special_tokens, tokenizer_of
from dti_pipeline.packing.words import GAPS, filling_in, render
from dti_pipeline.paths import Paths
from dti_pipeline.validation.requirement import require_passed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOADS_VERSION = 1  # of the code that makes the tokens of a load; goes into its key
TOKENIZER = "tokenizer"
OF_USERS = ("user_texts", "user_texts_cut", "users_without_text", "longest_user_text")


@dataclass(frozen=True)
class _Words:
    """A tokenizer with the tokens that prompts need."""

    tokenizer: PreTrainedTokenizerBase
    special: dict[str, int]
    new_labels: tuple[str, ...]
    folder: Path | None = None  # where it lies already

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _Words:
        before = tokenizer.get_vocab()
        special = special_tokens(tokenizer)
        added = tokenizer.get_vocab().keys() - before.keys()
        return cls(tokenizer, special, tuple(token for _, token in ROLES.values() if token in added))

    def digest(self) -> str:
        """Of all that decides which tokens a text is."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        whole = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return hashlib.md5(whole.encode()).hexdigest()

    def save(self, to: Path) -> None:
        if self.folder is None:
            self.tokenizer.save_pretrained(to)
        else:
            shutil.copytree(self.folder, to)


@dataclass
class _Made:
    """The tokens of some loads, one behind the other."""

    loads: list[TokenizedLoad] = field(default_factory=list)
    tokens: list[NDArray[np.int32]] = field(default_factory=list)  # of texts
    lengths: list[NDArray[np.int64]] = field(default_factory=list)  # of each text
    items: dict[str, list[str]] = field(default_factory=dict)
    columns: list[Iterator[Mapping[str, NDArray[Any]]]] = field(default_factory=list)  # parts of the rows

    @property
    def texts(self) -> int:
        return sum(map(len, self.lengths))

    def add(self, log: Log, config: TokensConfig, words: _Words | None, key: str) -> _Words:
        """The tokens of a load's log; a tokenizer that is to be trained is trained on its texts."""
        texts, text_of_kind = _texts_of_items(log, config)
        user_texts, text_of_user = _texts_of_users(log, config)
        words = words or _Words.of(tokenizer_of(config, [*texts, *user_texts]))
        before = np.int32(self.texts)
        tokens, offsets, cut = encode(words.tokenizer, texts, config.max_text_tokens)
        self._append(tokens, offsets)
        counts: dict[str, int] = {}
        if user_texts:
            of_users, offsets_of_users, users_cut = encode(words.tokenizer, user_texts, config.max_text_tokens, "user")
            self._append(of_users, offsets_of_users)
            counts = {
                "user_texts": len(user_texts),
                "user_texts_cut": users_cut,
                "users_without_text": log.users_of(text_of_user == 0) if not user_texts[0] else 0,
                "longest_user_text": int(np.diff(offsets_of_users).max()),
            }
        self.columns.append(log.columns(text_of_kind + before, text_of_user + before + np.int32(len(texts))))
        items = _of_items(log.items, config.columns)
        self.items = _items_of_both(self.items, items) if self.items else items
        tokens_of_rows = log.sum(np.diff(offsets)[text_of_kind]) + log.rows
        self.loads.append(TokenizedLoad(key, log.rows, len(texts), cut, tokens_of_rows, **counts))
        return words

    def _append(self, tokens: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        self.tokens.append(tokens)
        self.lengths.append(np.diff(offsets))

    def write(self, folder: Path) -> None:
        """The files of a token store, but for the tokenizer."""
        write_columns(folder / "texts.arrow", {"token": np.concatenate(self.tokens)})
        offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *self.lengths]), dtype=np.int64)
        write_columns(folder / "offsets.arrow", {"offset": offsets})
        rows = sum(load.interactions for load in self.loads)
        write_parts(folder / "interactions.arrow", rows, chain.from_iterable(self.columns))
        pq.write_table(pa.table(self.items), folder / ITEMS)


def tokenize(config: Config, paths: Paths) -> TokenizeReport:
    """Make the token store of the events that passed validation.

    Texts longer than ``tokens.max_text_tokens`` are cut at the end and counted; an empty one becomes ``item <id>``.
    The texts and rows of a load stand behind those of the one before. A tokenizer is trained on the files before all
    loads, and what the store holds of these events is not made again.
    Cost: one pass over the distinct texts, one over the log, in tasks of spans of users. Memory: that of a span, and
    the distinct texts.
    """
    ingested = artifacts.read(paths.events, "ingest", IngestReport)
    require_passed(config, paths)
    inputs = Inputs.of({"events": paths.events})
    # Not the checks: they decide whether there are tokens, not which. A threshold that changes leaves the models valid.
    recorded = config.sections("tokens") | {"split": {"context": config.split.context}}
    with (
        tasks.engine(config.execution),
        artifacts.publish(paths.tokens, "tokenize", recorded, inputs) as draft,
        artifacts.aside(paths.tokens) as scratch,
    ):
        words = None if config.tokens.tokenizer is None else _Words.of(tokenizer_of(config.tokens, ()))
        keys, made = _keys(ingested, recorded, words), _Made()
        if ingested.report.loads is not None and (before := _store_before(paths, keys)):
            made = _made_before(before)
            words = words or _Words(
                load_trained(paths.tokens), before.report.special_tokens, before.report.new_label_words,
                paths.tokens / TOKENIZER,
            )  # fmt: skip
        for number, path in [*enumerate(published.interactions(paths.events))][len(made.loads) :]:
            if number and not pq.read_metadata(path).num_rows:
                made.loads.append(TokenizedLoad(keys[number], 0, 0, 0, 0))
                continue
            (columns := scratch / str(number)).mkdir()
            words = made.add(Log.read(path, config, columns), config.tokens, words, keys[number])
        assert words is not None
        made.write(draft.path)
        words.save(draft.path / TOKENIZER)
        report = draft.report = _report(made.loads, words, config, ingested)
    return report


def _report(
    made: Sequence[TokenizedLoad], words: _Words, config: Config, ingested: Manifest[IngestReport]
) -> TokenizeReport:
    tokenizer, prefix, split = words.tokenizer, config.tokens.prefix, ingested.config["split"]
    tokens, rows = (sum(getattr(load, name) for load in made) for name in ("tokens", "interactions"))
    of_users: dict[str, int | None] = {}
    if made[0].user_texts is not None:
        counts = {name: [getattr(load, name) or 0 for load in made] for name in OF_USERS}
        of_users = {name: (max if name == "longest_user_text" else sum)(of) for name, of in counts.items()}
    return TokenizeReport(
        interactions=rows,
        texts=sum(load.texts for load in made),
        texts_cut=sum(load.texts_cut for load in made),
        tokens=tokens,
        tokens_per_interaction=round((tokens - rows) / rows + 1, 4),
        vocabulary=max(tokenizer.get_vocab().values()) + 1,
        special_tokens=words.special,
        new_label_words=words.new_labels,
        prefix_tokens=tuple(tokenizer.encode(prefix, add_special_tokens=False) if prefix else []),
        knowledge=Knowledge(
            split["feedback_delay"], config.split.context, split["ties"], ingested.report.whole_seconds
        ),
        loads=tuple(made) if ingested.report.loads is not None else None,
        **of_users,
    )


def _keys(ingested: Manifest[IngestReport], recorded: Mapping[str, Any], words: _Words | None) -> list[str]:
    """Of each load a digest of all that its tokens are made of."""
    begin = [LOADS_VERSION, recorded, None if words is None else words.digest()]
    keys, key = [], artifacts.content_digest(begin)
    for path in published.interactions(ingested.path):
        key = artifacts.content_digest([key, ingested.files[path.relative_to(ingested.path).as_posix()]])
        keys.append(key)
    return keys


def _store_before(paths: Paths, keys: Sequence[str]) -> Manifest[TokenizeReport] | None:
    """The store that is there, where it is whole and of the first of these loads; else None."""
    with suppress(InputError):
        found = artifacts.read(paths.tokens, "tokenize", TokenizeReport)
        known = [load.key for load in found.report.loads or ()]
        return found if known and known == keys[: len(known)] else None
    return None


def _made_before(store: Manifest[TokenizeReport]) -> _Made:
    folder = store.path
    rows = read_columns(folder / "interactions.arrow")
    return _Made(
        loads=[*(store.report.loads or ())],
        tokens=[read_columns(folder / "texts.arrow")["token"]],
        lengths=[np.diff(read_columns(folder / "offsets.arrow")["offset"])],
        items=pq.read_table(folder / ITEMS).to_pydict(),
        columns=[iter([rows])],
    )


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
    have one value for an item wherever it occurs. Any other, as a rate, is of the interaction: the request tells it."""
    last = {item[0]: item for item in items}
    ids = sorted(last)
    found = {"item_id": ids, "item_text": [last[one][1] for one in ids]}
    for place, name in enumerate(columns, 2):
        if name not in RATES and all(item[place] == last[item[0]][place] for item in items):
            found[name] = [last[one][place] for one in ids]
    return found


def _items_of_both(before: dict[str, list[str]], added: dict[str, list[str]]) -> dict[str, list[str]]:
    """What :func:`_of_items` has of an earlier load and of one behind it, as one."""
    place = {item: i for i, item in enumerate(added["item_id"])}
    again = [(i, place[item]) for i, item in enumerate(before["item_id"]) if item in place]
    ids = sorted({*before["item_id"], *place})
    found: dict[str, list[str]] = {"item_id": ids}
    for name, values in list(before.items())[1:]:
        new = added.get(name)
        if new is not None and (name == "item_text" or all(values[i] == new[j] for i, j in again)):
            of_item = dict(zip(before["item_id"], values, strict=True)) | dict(zip(place, new, strict=True))
            found[name] = [of_item[one] for one in ids]
    return found
