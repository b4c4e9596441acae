-- The first row that is not of the split of its request, or whose split comes before that of the row before it.
CREATE TEMP VIEW misplaced AS
WITH neighbours AS (
    SELECT
        *,
        lag(split) OVER earlier AS split_before,
        lag("row") OVER earlier AS row_before,
        request = lag(request) OVER earlier AS one_request
    FROM (SELECT *, own_split AS split FROM history)
    WINDOW earlier AS (PARTITION BY "user" ORDER BY position)
),
misplaced_rows AS (
    SELECT
        *,
        list_position(['train', 'validation', 'test'], split)
        - list_position(['train', 'validation', 'test'], split_before) AS step
    FROM neighbours
    WHERE step < 0 OR (one_request AND step <> 0)
    ORDER BY "user", position
    LIMIT 1
)
SELECT
    own.source_file || ' line ' || ("row" & (1::BIGINT << 40) - 1) AS here,
    split,
    other.source_file || ' line ' || (row_before & (1::BIGINT << 40) - 1) AS there,
    split_before,
    one_request
FROM misplaced_rows
INNER JOIN files AS own ON own.file = "row" >> 40
INNER JOIN files AS other ON other.file = row_before >> 40;
