-- Good rows to one history for each user, in requests.
-- good_rows(user_id, item_id, rating, timestamp, request_id, own_split, row) and users(user_id, user) are there, those of
-- all users or of some.
-- together: rows of one time stamp are one request where they have no id of one, and the file's order tells nothing of
-- them; repeats: rows that are equal in everything are kept; first_row: "row" of the load's first, 0 for a whole log.

-- Exact duplicates: the first one stays, unless they are repeats. copies: of the load.
CREATE TEMP TABLE kept AS
SELECT
    "user", item_id, rating, "timestamp", request_id, own_split,
    min("row") AS "row",
    count(*) FILTER ("row" >= getvariable('first_row')) AS copies
FROM good_rows INNER JOIN users USING (user_id)
GROUP BY
    "user", item_id, rating, "timestamp", request_id, own_split,
    CASE WHEN getvariable('repeats') THEN "row" END;

-- Each user's history: requests by the time they begin, rows of one by a hash of the item, since an order that the file
-- chose could tell their labels; so could that of requests of one time.
-- request: position of the request's first row; begins, ends: its earliest and its latest time.
CREATE TEMP TABLE history AS
WITH named AS (
    SELECT
        "user",
        request_id,
        min("timestamp") AS begins,
        max("timestamp") AS ends,
        min("row") AS first_row
    FROM kept
    WHERE request_id IS NOT NULL
    GROUP BY "user", request_id
),
timed AS (
    SELECT
        kept.*,
        coalesce(named.begins, "timestamp") AS begins,
        coalesce(named.ends, "timestamp") AS ends,
        CASE WHEN getvariable('together') THEN md5(request_id) END AS lot,
        CASE WHEN NOT getvariable('together') THEN coalesce(first_row, "row") END AS turn
    FROM kept LEFT JOIN named USING ("user", request_id)
)
SELECT
    * EXCLUDE (request_id, lot, turn),
    row_number() OVER (PARTITION BY "user" ORDER BY begins, lot, turn, md5(item_id), "row") - 1 AS position,
    rank() OVER (PARTITION BY "user" ORDER BY begins, lot, turn) - 1 AS request
FROM timed;
