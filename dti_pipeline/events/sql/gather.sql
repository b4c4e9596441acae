-- All staged rows to one history for each user.
-- Table files(file, source_file, part) and table item_rows(file, line, item_id, item_text) are there.
-- parts: their paths; max_users: null for all.
CREATE TEMP VIEW staged AS
SELECT
    files.source_file,
    files.file,
    files.file * (1::BIGINT << 40) + line AS "row",  -- file order, then line order
    staged.* EXCLUDE (filename)
FROM read_parquet(getvariable('parts'), filename = true) AS staged
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

-- Exact duplicates: the first one stays. Then each user's history by time; equal times in file order.
CREATE TEMP TABLE history AS
SELECT
    *,
    row_number() OVER (PARTITION BY "user" ORDER BY "timestamp", "row") - 1 AS position
FROM (
    SELECT "user", item_id, rating, "timestamp", min("row") AS "row", count(*) AS copies
    FROM read_rows INNER JOIN users USING (user_id)
    WHERE reason IS NULL
    GROUP BY ALL
);

-- A title from the item files, the first that has one, or else the text that came with an item's first row.
CREATE TEMP TABLE titles AS
SELECT item_id, arg_min(item_text, preference) AS item_text
FROM (
    SELECT item_id, item_text, struct_pack(source := 0, file := file, line := line) AS preference
    FROM item_rows
    UNION ALL
    SELECT item_id, item_text, struct_pack(source := 1, file := file, line := line) FROM staged
    WHERE reason IS NULL AND item_text IS NOT NULL
)
GROUP BY item_id;
