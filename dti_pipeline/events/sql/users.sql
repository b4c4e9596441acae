-- Values to users; `reason` says why a row names none. `more`: of the further columns.
CREATE OR REPLACE TEMP VIEW parsed AS
WITH named AS (
    SELECT
        *,
        CASE WHEN problem IS NULL THEN identity(trim("values"[1])) END AS id,
        CASE
            WHEN problem IS NOT NULL THEN problem
            WHEN id IS NULL THEN 'user id missing'
            WHEN rounded(id) THEN 'user id is a rounded number'
        END AS reason
    FROM records
)
SELECT
    line,
    CASE WHEN reason IS NOT NULL THEN raw END AS raw,
    CASE WHEN reason IS NULL THEN id END AS user_id,
    reason,
    list_transform("values"[2:], lambda words: phrase(words)) AS more
FROM named;
