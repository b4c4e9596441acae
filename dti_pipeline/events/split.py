"""The split of interactions into training, validation and test rows."""

from __future__ import annotations

import duckdb

from dti_pipeline.config import SplitConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events.database import run_script


def split(connection: duckdb.DuckDBPyConnection, config: SplitConfig, clock: bool) -> None:
    """View ``split_rows``: table ``history`` with each row's split, by the rule of ``config``.

    Eligible rows have ``min_history`` earlier rows of their user. ``global_time`` cuts all rows where the clock passes
    the quantiles of the eligible ones; ``user_order`` cuts each history by its own length. Either way a user's rows go
    train, validation, test in order, so that what precedes a target is never later than it.
    Raises InputError for a log without timestamps under ``global_time``, or with no eligible row to learn from.
    """
    if config.rule == "global_time" and not clock:
        raise InputError("the log has no timestamps, which `split.rule: global_time` needs: use split.rule=user_order")
    run_script(
        connection,
        f"split_{config.rule}",
        min_history=config.min_history,
        validation_share=config.validation_share,
        test_share=config.test_share,
    )
    found = connection.execute(
        "SELECT count(*) FROM split_rows WHERE split = 'train' AND position >= $1", [config.min_history]
    ).fetchone()
    if not found or not found[0]:
        raise InputError(
            f"no row is left to train on: none before the held-out ones has {config.min_history} earlier rows of its"
            " user (params key `split.min_history`)"
        )
