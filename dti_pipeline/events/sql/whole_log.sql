-- What is of the whole log, or of a load: its users, its titles, what is quarantined. Views staged, own_staged and
-- item_rows(file, line, raw, item_id, item_text, reason, more) are there.
-- max_users: null for all.
-- rows: good ones, duplicates among them.
CREATE TEMP TABLE users AS
SELECT
    user_id,
    "rows",
    row_number() OVER (ORDER BY TRY_CAST(user_id AS BIGINT) NULLS LAST, user_id) AS "user"  -- 1, 2, 10, then a, b
FROM (
    SELECT
        user_id,
        count(*) AS "rows"
    FROM own_staged
    WHERE reason IS NULL
    GROUP BY user_id
    QUALIFY getvariable('max_users') IS NULL OR row_number() OVER (ORDER BY md5(user_id)) <= getvariable('max_users')
);

-- Rows whose user cannot be told count as read.
CREATE TEMP VIEW read_rows AS
SELECT * FROM own_staged
WHERE getvariable('max_users') IS NULL OR user_id IS NULL OR user_id IN (SELECT users.user_id FROM users);

CREATE TEMP VIEW quarantine AS
SELECT source_file, line, reason, raw FROM read_rows WHERE reason IS NOT NULL ORDER BY "row";

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
