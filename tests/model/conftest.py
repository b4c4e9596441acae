"""Small logs and models for the proofs: fp32, CPU, a fraction of a second each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from dti_pipeline.config import Config, ModelConfig
from dti_pipeline.modeling.attention.interface import Backend
from dti_pipeline.modeling.attention.sums.rows import SumRows
from dti_pipeline.modeling.masks.visibility import intervals
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.compilation import compile_parts
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.execution import Choice
from dti_pipeline.packing import prompts
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import named
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import BY_NAME
from dti_pipeline.plain import from_plain
from tests.small import SMALL_PIPELINE

SPECIAL = {"pad": 0, "sum": 1, "yes": 2, "no": 3}
VOCABULARY = 40
History = list[tuple[list[int], int]]
Late = list[tuple[list[int], list[int]]]
#: [SUM]s under the mask alone, and under both of the paper's fixes.
RULES = pytest.mark.parametrize(
    "fixes", [{}, {"forgetting": "linear", "sum_position": "nope_alibi"}], ids=["plain", "fixes"]
)


@dataclass
class Log:
    """A log in memory, packable as the stages pack it."""

    histories: list[History]
    store: TokenStore

    @classmethod
    def of(cls, histories: list[History], prefix: tuple[int, ...] = (), late: Late | None = None,
           users: list[list[int]] | None = None) -> Log:  # fmt: skip
        """``late``: request and known of each history's rows, by position; else each is a request of its own.
        ``users``: tokens of each history's user."""
        request, known = zip(*late or [(range(len(h)), range(len(h))) for h in histories], strict=True)
        rows = [row for history in histories for row in history]
        texts = [*(text for text, _ in rows), *(users or [])]
        tokens = [token for text in texts for token in text]
        offsets = np.cumsum([0, *map(len, texts)]).astype(np.int64)
        user_text = [len(rows) + i for i, history in enumerate(histories) for _ in history] if users else []
        store = TokenStore(
            tokens=np.array(tokens, np.int32),
            offsets=offsets,
            text=np.arange(len(rows), dtype=np.int32),
            label=np.array([label for _, label in rows], np.int8),
            split=np.zeros(len(rows), np.int8),
            position=np.array([i for history in histories for i in range(len(history))], np.int32),
            request=np.array([i for one in request for i in one], np.int32),
            known=np.array([i for one in known for i in one], np.int32),
            prefix=np.array(prefix, np.int32),
            special=SPECIAL,
            vocabulary=VOCABULARY,
            user_text=np.array(user_text, np.int32),
        )
        return cls(histories, store)

    @classmethod
    def random(cls, users: int, seed: int, shortest: int = 3, longest: int = 12, text: int = 4,
               prefix: tuple[int, ...] = (), late: str = "", user: int = 0) -> Log:  # fmt: skip
        """``late``: "shown" or "known" draws requests and labels that are known late, and is the context's kind.
        ``user``: tokens of a user's text at most; some are empty."""
        draw = np.random.default_rng(seed)
        histories = [
            [
                (draw.integers(4, VOCABULARY, draw.integers(1, text + 1)).tolist(), int(draw.integers(2)))
                for _ in range(draw.integers(shortest, longest + 1))
            ]
            for _ in range(users)
        ]
        known = [_late(len(history), draw) for history in histories] if late else None
        texts = [draw.integers(4, VOCABULARY, draw.integers(user + 1)).tolist() for _ in histories] if user else None
        log = cls.of(histories, prefix, known, texts)
        return cls(histories, dataclasses.replace(log.store, context="known" if late == "known" else "shown"))

    def knowledge(self) -> Iterator[tuple[list[int], list[int]]]:
        """Of each history: rows in each row's context, and labels that it knows."""
        starts = np.flatnonzero(self.store.position == 0)[1:]
        for seen, known in zip(np.split(self.store.seen, starts), np.split(self.store.known, starts), strict=True):
            yield seen.tolist(), known.tolist()

    def openings(self) -> Iterator[tuple[int, ...]]:
        """Of each history: the tokens that open its prompts."""
        store = self.store
        for row in np.flatnonzero(store.position == 0):
            text = store.user_text[row] if len(store.user_text) else None
            user = [] if text is None else store.tokens[store.offsets[text] : store.offsets[text + 1]].tolist()
            yield (*store.prefix.tolist(), *user)

    def rows(self, context: int, targets: int | None, row_length: int, min_history: int = 1, seed: int = 0) -> Rows:
        store = self.store
        cut, _ = prompts.cut(
            store.position >= min_history, store.position, store.seen, store.lengths(), context, targets, row_length,
            store.opening(),
        )  # fmt: skip
        return Rows.pack(store, cut, row_length, seed)

    def batch(self, context: int, targets: int | None, row_length: int = 256, **options: int) -> Batch:
        return self.batch_of(self.rows(context, targets, row_length, **options))

    def batch_of(self, rows: Rows) -> Batch:
        return Batch.of(rows.assemble(np.arange(len(rows))), self.store.label)


def _late(rows: int, draw: np.random.Generator) -> tuple[list[int], list[int]]:
    """Requests of one to three rows, each knowing the labels up to some row before it."""
    request: list[int] = []
    known: list[int] = []
    while len(request) < rows:
        size = min(int(draw.integers(1, 4)), rows - len(request))
        known += [int(draw.integers(known[-1] if known else 0, len(request) + 1))] * size
        request += [len(request)] * size
    return request, known


def k_of(paradigm: str) -> int:
    return named(paradigm).targets(4) or 4


def filled(log: Log, rows: Rows) -> Batch:
    """A row of padding below the rows, and two targets more than any row has."""
    layout = rows.assemble(np.arange(len(rows)), len(rows) + 1)
    return Batch.of(layout, log.store.label, int(rows.targets().max()) + 2)


def small_model(paradigm: str, context: int, layers: int = 2, row_length: int = 256, prefix: int = 0, seed: int = 0,
                **settings: object) -> CTRModel:  # fmt: skip
    """A random model with a head that says something (a new one says 1/2 to everything)."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "layers": layers,
        "heads": 4,
        "kv_heads": 2,
        "intermediate_size": 48,
        "initial_std": 0.15,
    }
    model = CTRModel(
        ModelConfig(**{**shape, **settings}), named(paradigm), context, VOCABULARY, row_length, SPECIAL, prefix
    )
    return speaking(model, seed)


def planned(model: CTRModel, **choices: bool) -> CTRModel:
    """The model with some choices of its plan made otherwise."""
    made: dict[str, Any] = {name: Choice(on, "a test's") for name, on in choices.items()}
    model.plan = dataclasses.replace(model.plan, **made)
    return model


@dataclass
class Watching:
    """A backend that keeps every call."""

    inner: Backend
    calls: list[tuple[Any, ...]] = field(default_factory=list)  # module, query, key, value, scale, layer

    def attend(self, *call: Any) -> Tensor:
        self.calls.append(call)
        return self.inner.attend(*call)


def placed(model: CTRModel, device: str = "cuda", compute: torch.dtype = torch.float32) -> CTRModel:
    """The model on a device and compiled, as a training has it."""
    model.place(model.make_plan(torch.device(device), compute))
    compile_parts(model)
    return model


def sums_of(model: CTRModel, batch: Batch, embedded: Tensor | None = None) -> SumRows:
    """The [SUM] rows of a batch."""
    spans = intervals(batch.tokens, model.paradigm, model.context)
    embedded = model.embed(batch) if embedded is None else embedded
    return model.attention.sums(batch, spans, embedded, model.paradigm, model.trained_tokens, model.slopes)


def speaking(model: CTRModel, seed: int = 0) -> CTRModel:
    """In evaluation mode, with logits of a few units instead of a new head's zeros."""
    if model.head is not None:
        torch.nn.init.normal_(model.head.weight, std=0.2, generator=torch.Generator().manual_seed(seed))
    return model.eval()


def alone(rows: Rows) -> Rows:
    """Every target in a prompt of its own that begins where its streaming prompt begins, one prompt a row."""
    prompt = np.repeat(np.arange(len(rows.start)), rows.stop - rows.first_target)
    target = np.concatenate([np.arange(a, b) for a, b in zip(rows.first_target, rows.stop, strict=True)])
    return Rows(rows.store, rows.row_length, rows.start[prompt], target, target + 1, np.arange(len(target)))


def logits_by_target(model: CTRModel, batch: Batch) -> dict[int, float]:
    """Logit of each target, by its row of the log."""
    with torch.no_grad():
        logits = model(batch)
    return dict(zip(batch.target.tolist(), logits.tolist(), strict=True))


def differences(one: dict[int, float], other: dict[int, float]) -> dict[int, float]:
    """How far two scorings of the same targets are apart, each."""
    assert one.keys() == other.keys()
    return {target: abs(one[target] - other[target]) for target in one}


#: Largest difference of equal logits in fp32: they are a few units in size.
TOLERANCE = 1e-5
#: How :func:`Log.random` may be called, as a hypothesis strategy.
histories = {
    "users": st.integers(1, 4),
    "seed": st.integers(0, 10**6),
    "longest": st.integers(3, 14),
    "text": st.integers(1, 5),
    "late": st.sampled_from(["", "shown", "known"]),
}


#: And how long its users' texts may be.
user_texts = st.sampled_from([0, 4])


@pytest.fixture(scope="session")
def token_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Paths]:
    """A project home whose log went through the stages up to tokens. Tests make shards and models beside them."""
    paths = Paths(tmp_path_factory.mktemp("home"))
    checked = find_spec("great_expectations") is not None  # a GPU machine may have what trains, and no more
    config = from_plain(Config, SMALL_PIPELINE)
    config = replace(config, validation=replace(config.validation, required=checked))
    for stage in ("synth", "ingest", *(["validate"] if checked else []), "tokenize"):
        BY_NAME[stage].run(config, paths)
    return config, paths
