-- Values to users. Rows without an id are left out. `more`: of the further columns.
CREATE OR REPLACE TEMP VIEW parsed AS
SELECT
    line,
    nullif(trim("values"[1]), '') AS user_id,
    list_transform("values"[2:], lambda word: nullif(trim(regexp_replace(word, '\s+', ' ', 'g')), '')) AS more
FROM records
WHERE problem IS NULL AND nullif(trim("values"[1]), '') IS NOT NULL;
