"""Users whose history is another user's, item by item: one person under two ids, or rows that were copied."""

from __future__ import annotations

from dti_pipeline.validation.report import Copies
from dti_pipeline.validation.tables import Tables

#: Rows from which two equal histories are no chance.
LONG = 10


def copies(tables: Tables) -> Copies:
    """Users with at least LONG rows whose items are, in order, all those of another user; labels and times play no
    part. Cost: one pass over the interactions, and memory for some numbers a user."""
    query = f"""
        WITH histories AS (
            SELECT count(*) AS size, count(*) FILTER (split = 'train') AS trained,
                bit_xor(hash(position, item_id)) AS items
            FROM interactions GROUP BY user_id HAVING size >= {LONG}
        ), beside AS (
            SELECT trained, max(trained) OVER alike AS most, count(*) OVER alike AS users
            FROM histories WINDOW alike AS (PARTITION BY size, items)
        )
        SELECT count(*), coalesce(sum(most - trained), 0)::BIGINT FROM beside WHERE users > 1
    """
    ((users, told),) = tables.connection.execute(query).fetchall()
    if not users:
        return Copies(0, None)
    of = (
        f"{told:,} of their held-out rows stand among the training rows of a copy, so that a score may be memory"
        if told
        else "one person counts as several"
    )
    return Copies(users, f"{users:,} users have, item by item, the history of another user: {of}")
