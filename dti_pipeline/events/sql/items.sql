-- Values to item texts: `Title (Year) Genre, Genre`. Rows without an id or a title are left out. `more`: of the further
-- columns, which only files without flags have.
-- genres: null where the third value lists genres as A|B; else names of the genres whose flags the values from the
-- third on are.
CREATE OR REPLACE TEMP VIEW parsed AS
WITH trimmed AS (
    SELECT
        line,
        nullif(trim("values"[1]), '') AS item_id,
        nullif(trim(regexp_replace("values"[2], '\s+', ' ', 'g')), '') AS title,
        CASE
            WHEN getvariable('genres') IS NULL THEN string_split("values"[3], '|')
            ELSE list_where(getvariable('genres')::VARCHAR[], list_transform("values"[3:], lambda flag: flag = '1'))
        END AS genres,
        CASE WHEN getvariable('genres') IS NULL THEN "values"[4:] ELSE [] END AS more
    FROM records
    WHERE problem IS NULL
)
SELECT
    line,
    item_id,
    concat_ws(' ', title, nullif(array_to_string(list_filter(list_transform(genres, lambda genre: trim(genre)),
        lambda genre: genre NOT IN ('', 'unknown', '(no genres listed)')), ', '), '')) AS item_text,
    list_transform(more, lambda word: nullif(trim(regexp_replace(word, '\s+', ' ', 'g')), '')) AS more
FROM trimmed
WHERE item_id IS NOT NULL AND title IS NOT NULL;
