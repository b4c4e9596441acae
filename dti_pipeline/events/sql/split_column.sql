-- As the log's own column says.
CREATE TEMP VIEW split_rows AS
SELECT
    *,
    own_split AS split
FROM history;
