"""What stands before targets: requests of several rows, and how young the labels of the last rows are.

A label that is seconds old when the next row is shown is one that a server would hardly have yet.
"""

from __future__ import annotations

from dti_pipeline.config import Config
from dti_pipeline.validation.report import Timing
from dti_pipeline.validation.tables import Tables

#: Ages in seconds, by name.
AGES = {"a second": 1, "a minute": 60, "ten minutes": 600, "an hour": 3600, "a day": 86_400}
#: Share of labels younger than a minute above which a delay of none is warned of.
MANY = 0.1


def timing(config: Config, tables: Tables) -> Timing:
    """Requests, and ages of the labels of the last ``packing.context`` rows before each target.

    A share is one of all pairs of a target and such a row; an age is the time from the row's request to the target's.
    Cost: a sort of the requests, out of core.
    """
    n = config.packing.context
    facts = "coalesce(sum(size) FILTER (size > 1), 0)::BIGINT, coalesce(max(size), 0), count(begins) > 0"
    pairs = ["request", *(f"request - older_{age}" for age in AGES.values())]
    sums = [f"sum(size * least({rows}, {n})) FILTER (request >= {config.split.min_history})::BIGINT" for rows in pairs]
    older = [  # so many of the user's first rows are at least so old
        "coalesce(max(request + size) OVER (PARTITION BY user_id ORDER BY begins"
        f" RANGE BETWEEN UNBOUNDED PRECEDING AND {age} PRECEDING), 0) AS older_{age}"
        for age in AGES.values()
    ]
    query = f"""
        WITH requests AS (
            SELECT user_id, request, min(timestamp) AS begins, count(*) AS size
            FROM interactions GROUP BY user_id, request
        )
        SELECT {facts}, {", ".join(sums)} FROM (SELECT *, {", ".join(older)} FROM requests)
    """
    ((several, largest, clock, seen, *young),) = tables.connection.execute(query).fetchall()
    if not clock:
        return Timing(several, largest, None, "not known: the log has no clock", None)
    younger = {name: round(count / seen, 6) if seen else 0.0 for name, count in zip(AGES, young, strict=True)}
    shares = ", ".join(f"{share:.1%} than {name}" for name, share in younger.items()).replace(" ", " are younger ", 1)
    warning = None
    if younger["a minute"] > MANY and not config.split.feedback_delay:
        warning = (
            f"{younger['a minute']:.1%} of the labels in a target's context are younger than a minute: a model is shown"
            " labels that a server would not have yet, unless `split.feedback_delay` says after how many seconds it has"
            " them"
        )
    return Timing(several, largest, younger, f"of the last {n} before a target {shares}", warning)
