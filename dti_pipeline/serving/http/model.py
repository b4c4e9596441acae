"""The model in use: looked for again and again, loaded beside the old one, and taken between two batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from threading import Event
from typing import Any

from dti_pipeline.errors import InputError
from dti_pipeline.packing.words import stand_in
from dti_pipeline.serving import item_store
from dti_pipeline.serving.http.metrics import Metrics
from dti_pipeline.serving.item_states import ItemStates
from dti_pipeline.serving.scorer import Scorer
from dti_pipeline.serving.settings import ServingConfig

log = logging.getLogger(__name__)


#: Between two attempts to load a folder that was refused and has not changed.
RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class Served:
    """A loaded model and its name: the first characters of its manifest's digest."""

    scorer: Scorer
    name: str

    @property
    def paradigm(self) -> str:
        return self.scorer.model.paradigm.name


@dataclass(frozen=True)
class _Refused:
    of: tuple[Path, str]  # folder and name
    until: float  # when it is tried again
    why: str


class Models:
    """The model that ``find``, a function to a folder, names: an alias may move, a folder may be published anew."""

    def __init__(
        self, find: Callable[[], Path], metrics: Metrics, settings: ServingConfig, stores: Path | None = None
    ) -> None:
        self.current: Served | None = None  # assigned whole: a batch reads it once
        self._find, self._metrics, self._settings, self._stores = find, metrics, settings, stores
        self._refused: _Refused | None = None
        self._said = ""

    def look(self) -> None:
        """Load the model that is named now, unless it is in use. InputError says why it is refused; the model in use
        then stays, and the same folder is read again after ``RETRY_SECONDS``."""
        folder = self._find().resolve()  # a link that moves on while it is read leads to one model all the same
        name = _name(folder)
        if self.current is not None and name == self.current.name:
            return
        refused = self._refused
        if refused is not None and refused.of == (folder, name) and time.monotonic() < refused.until:
            raise InputError(refused.why)
        try:
            scorer = _proven(folder, name, self._settings, self._stores)
        except Exception as error:
            why = f"{folder} cannot be served: {_sentence(error)}"
            self._refused = _Refused((folder, name), time.monotonic() + RETRY_SECONDS, why)
            self._metrics.loads.labels("refused").inc()
            raise InputError(why) from error
        if _name(folder) != name:
            raise InputError(f"{folder} was replaced while it was read")
        self.current, self._refused = Served(scorer, name), None
        self._metrics.loads.labels("loaded").inc()
        self._metrics.model.clear()
        self._metrics.model.labels(name, self.current.paradigm).set(1)
        log.info("model in use", extra={"fields": {"model": name, "paradigm": self.current.paradigm}})

    def watch(self, seconds: float, stopped: Event) -> None:
        """Look every so many seconds until ``stopped``. What fails is logged once, and the model in use stays."""
        while not stopped.wait(seconds):
            said = ""
            try:
                self.look()
            except Exception as error:  # whatever it is, the old model goes on serving
                said = _sentence(error)
                if said != self._said:
                    log.warning("the model in use stays", extra={"fields": {"why": said}})
            self._said = said


def _name(folder: Path) -> str:
    return item_store.digest_of(folder)[: item_store.NAME]


def _proven(folder: Path, name: str, settings: ServingConfig, stores: Path | None) -> Scorer:
    """A model that has answered one request, which also compiles what it needs."""
    scorer = Scorer.load(folder)
    if settings.item_states:
        with _unless_refused("no item states are kept"):
            states = ItemStates(scorer.model, scorer.device, scorer.autocast, settings.item_states)
            scorer = replace(scorer, states=states)
            if stores is not None:
                item_store.start_with(states, folder, stores)
    if settings.user_states_mib:
        with _unless_refused("no states of users are kept"):
            scorer = scorer.with_users(name, settings.user_targets, settings.user_states_mib << 20)
    [[probability]] = scorer.score([example(scorer)])
    if not isfinite(probability):
        raise InputError("its probabilities are not numbers")
    return scorer


@contextmanager
def _unless_refused(said: str) -> Iterator[None]:
    """Go on without something that the model does not allow."""
    try:
        yield
    except InputError as error:
        log.info(said, extra={"fields": {"why": str(error)}})


def example(scorer: Scorer) -> dict[str, Any]:
    """A request that the model can answer: it has every time and column that any model asks for."""
    item = {"item_id": "0", "item_text": "a title"} | {name: stand_in(name) for name in scorer.columns}
    history = [item | {"label": 1, "timestamp": 0}]
    user = dict.fromkeys(scorer.user_columns, "")
    return {"user": user, "timestamp": 60, "history": history, "candidates": [item]}


def _sentence(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
