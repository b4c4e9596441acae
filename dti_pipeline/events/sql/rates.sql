-- rates("row", item_rate, user_rate): of each interaction, how often its item and its user were liked so far, as a digit:
-- tenths of the share of labels that are 1, among those known when the interaction's request was made. The share starts
-- from 5 labels at that of all labels known by then.
-- Table labelled is there, and view labels(item_id, timestamp, label) of all that is ever told of the whole log. A user's
-- known labels are those of `known`; any other is known where its time and the delay have passed. delay: seconds, above 0:
-- what happens in one moment knows nothing of each other.
CREATE TEMP MACRO tenths(liked, seen, share) AS
least(9, floor(10 * (coalesce(liked, 0) + 5 * share) / (coalesce(seen, 0) + 5) + 1e-9))::INTEGER::VARCHAR;

CREATE TEMP TABLE told AS
SELECT
    item_id,
    "timestamp" AS since,
    sum(label::INTEGER) AS liked,
    count(*) AS seen
FROM labels
WHERE "timestamp" IS NOT NULL
GROUP BY item_id, "timestamp";

CREATE TEMP TABLE item_told AS
SELECT
    item_id,
    since,
    sum(liked) OVER earlier AS liked,
    sum(seen) OVER earlier AS seen
FROM told
WINDOW earlier AS (PARTITION BY item_id ORDER BY since);

CREATE TEMP TABLE all_told AS
SELECT
    since,
    sum(sum(liked)) OVER earlier / sum(sum(seen)) OVER earlier AS share
FROM told
GROUP BY since
WINDOW earlier AS (ORDER BY since);

CREATE TEMP TABLE user_told AS
SELECT
    "user",
    position + 1 AS seen,
    sum(label) OVER (PARTITION BY "user" ORDER BY position ROWS UNBOUNDED PRECEDING) AS liked
FROM labelled;

CREATE TEMP TABLE rates AS
WITH asked AS (
    SELECT
        "row",
        "user",
        item_id,
        known,
        min("timestamp") OVER (PARTITION BY "user", request) - getvariable('delay') AS latest
    FROM labelled
),
shared AS (
    SELECT
        asked.*,
        coalesce(all_told.share, 0.5) AS share
    FROM asked ASOF LEFT JOIN all_told ON asked.latest >= all_told.since
)
SELECT
    shared."row",
    tenths(item_told.liked, item_told.seen, share) AS item_rate,
    tenths(user_told.liked, user_told.seen, share) AS user_rate
FROM shared
ASOF LEFT JOIN item_told ON shared.item_id = item_told.item_id AND shared.latest >= item_told.since
LEFT JOIN user_told ON shared."user" = user_told."user" AND shared.known = user_told.seen;
