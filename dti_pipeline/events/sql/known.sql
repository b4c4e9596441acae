-- What is known when. View requests("user", request, begins, ends, size) is there: position of the first row, earliest
-- and latest time, rows.
-- known_after(delay): of each request, how many of the user's first rows have a label that is known to it where labels
-- take `delay` seconds. Behind one that is not known none is.
CREATE TEMP MACRO known_after(delay) AS TABLE
WITH counted AS (
    SELECT
        "user",
        request + size AS size,
        max(ends) OVER (PARTITION BY "user" ORDER BY request) AS since
    FROM requests
),
settled AS (  -- the user's first `size` rows are all there since then
    SELECT
        "user",
        since,
        max(size) AS size
    FROM counted
    GROUP BY "user", since
)
SELECT
    requests."user",
    requests.request,
    least(requests.request, coalesce(settled.size, 0)) AS known
FROM requests
ASOF LEFT JOIN settled ON requests."user" = settled."user" AND requests.begins - delay >= settled.since;
