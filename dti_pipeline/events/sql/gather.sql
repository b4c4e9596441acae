-- All staged rows to one history for each user, in requests.
-- Table files(file, source_file, part), view parts_read over their rows, and table item_rows(file, line, raw, item_id,
-- item_text, reason, more) are there.
-- max_users: null for all; together: rows of one time stamp are one request where they have no id of one, and the
-- file's order tells nothing of them; repeats: rows that are equal in everything are kept.
CREATE TEMP VIEW staged AS
SELECT
    files.source_file,
    files.file,
    files.file * (1::BIGINT << 40) + line AS "row",  -- file order, then line order
    staged.* EXCLUDE (filename)
FROM parts_read AS staged
INNER JOIN files ON files.part = staged.filename;

CREATE TEMP TABLE users AS
SELECT
    user_id,
    row_number() OVER (ORDER BY TRY_CAST(user_id AS BIGINT) NULLS LAST, user_id) AS "user"  -- 1, 2, 10, then a, b
FROM (
    SELECT user_id FROM staged WHERE reason IS NULL GROUP BY user_id
    QUALIFY getvariable('max_users') IS NULL OR row_number() OVER (ORDER BY md5(user_id)) <= getvariable('max_users')
);

-- Rows whose user cannot be told count as read.
CREATE TEMP VIEW read_rows AS
SELECT * FROM staged
WHERE getvariable('max_users') IS NULL OR user_id IS NULL OR user_id IN (SELECT users.user_id FROM users);

CREATE TEMP VIEW quarantine AS
SELECT source_file, line, reason, raw FROM read_rows WHERE reason IS NOT NULL ORDER BY "row";

-- Exact duplicates: the first one stays, unless they are repeats.
CREATE TEMP TABLE kept AS
SELECT "user", item_id, rating, "timestamp", request_id, split AS own_split, min("row") AS "row", count(*) AS copies
FROM read_rows INNER JOIN users USING (user_id)
WHERE reason IS NULL
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

-- A title from the item files, the first that has one, or else the text that came with an item's first row.
CREATE TEMP TABLE titles AS
SELECT item_id, arg_min(item_text, preference) AS item_text
FROM (
    SELECT item_id, item_text, struct_pack(source := 0, file := file, line := line) AS preference
    FROM item_rows
    WHERE reason IS NULL
    UNION ALL
    SELECT item_id, item_text, struct_pack(source := 1, file := file, line := line) FROM staged
    WHERE reason IS NULL AND item_text IS NOT NULL
)
GROUP BY item_id;

CREATE TEMP VIEW item_quarantine AS
SELECT source_file, line, reason, raw FROM item_rows WHERE reason IS NOT NULL ORDER BY file, line;
