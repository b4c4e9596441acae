"""What a backtest begins with: the log in tokens, its days, and what is kept of days that are finished. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from dti_pipeline.artifacts import Inputs
from dti_pipeline.backtest import days as calendar
from dti_pipeline.backtest.days import Days
from dti_pipeline.backtest.state import States
from dti_pipeline.config import Config
from dti_pipeline.packing.store import TokenStore, require_events
from dti_pipeline.paths import Paths


@dataclass(frozen=True)
class Beginning:
    """Tokens and days of a home; the days are the same for all paradigms."""

    config: Config
    paths: Paths
    store: TokenStore
    days: Days
    inputs: Inputs  # by their digests from before they were read

    def states(self, paradigm: str) -> States:
        return States.of(self.config, self.paths, paradigm, self.store)

    def left(self, paradigm: str) -> list[str]:
        """Days of a paradigm that are not trained, in order."""
        return self.days.names()[self.states(paradigm).reached(self.days) - self.days.first :]


def begin(config: Config, paths: Paths) -> Beginning:
    """Read tokens and days. Raises InputError for tokens of other events, and for a log that cannot be told by days.

    Cost: one read of the events.
    """
    inputs = Inputs.published(tokens=(paths.tokens, "tokenize"), events=(paths.events, "ingest"))
    store = TokenStore.open(paths.tokens)
    require_events(paths)
    begun = States.of(config, paths, "any", store).begun()
    return Beginning(config, paths, store, calendar.read(config, paths, store, begun), inputs)
