"""What stands before targets: requests of several rows, and how young the labels of the last rows are.

A label that is seconds old when the next row is shown is one that a server would hardly have yet.
"""

from __future__ import annotations

from dti_pipeline.config import Config
from dti_pipeline.events.database import run_script
from dti_pipeline.validation.report import Timing
from dti_pipeline.validation.tables import Tables

#: Ages in seconds, by name.
AGES = {"a second": 1, "a minute": 60, "ten minutes": 600, "an hour": 3600, "a day": 86_400}
#: Share of labels younger than a minute above which a delay of none is warned of.
MANY = 0.1


def timing(config: Config, tables: Tables) -> Timing:
    """Requests, and ages of the labels of the last ``packing.context`` rows before each target.

    A share is one of the pairs of a target and such a row: of those whose label a delay of that age would still hide.
    Cost: a join of the requests for each age, out of core.
    """
    connection, n = tables.connection, config.packing.context
    connection.execute(
        """CREATE TEMP TABLE requests AS
           SELECT user_id AS "user", request, min(timestamp) AS begins, max(timestamp) AS ends, count(*) AS size
           FROM interactions GROUP BY user_id, request"""
    )
    query = """SELECT coalesce(sum(size) FILTER (size > 1), 0)::BIGINT, max(size), count(begins) > 0 FROM requests"""
    ((several, largest, clock),) = connection.execute(query).fetchall()
    if not clock:
        return Timing(several, largest or 0, None, "not known: the log has no clock", None)
    run_script(connection, "known")
    younger = {name: _younger(tables, seconds, n, config.split.min_history) for name, seconds in AGES.items()}
    shares = ", ".join(f"{share:.1%} than {name}" for name, share in younger.items()).replace(" ", " are younger ", 1)
    warning = None
    if younger["a minute"] > MANY and not config.split.feedback_delay:
        warning = (
            f"{younger['a minute']:.1%} of the labels in a target's context are younger than a minute: a model is shown"
            " labels that a server would not have yet, unless `split.feedback_delay` says after how many seconds it has"
            " them"
        )
    return Timing(several, largest, younger, f"of the last {n} before a target {shares}", warning)


def _younger(tables: Tables, seconds: int, n: int, min_history: int) -> float:
    """Share of the labels of the last ``n`` rows before targets that are younger; 0 where no row stands there."""
    query = f"""
        SELECT coalesce(sum(size * least(request - known, {n})) / nullif(sum(size * least(request, {n})), 0), 0)
        FROM known_after({seconds}) INNER JOIN requests USING ("user", request) WHERE request >= {min_history}
    """
    ((share,),) = tables.connection.execute(query).fetchall()
    return round(float(share), 6)
