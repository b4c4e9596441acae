-- Values to item texts: `Title (Year) Genre, Genre`; `reason` says why a row gives none. `more`: of the further columns,
-- which only files without flags have.
-- genres: null where the third value lists genres as A|B; else names of the genres whose flags the values from the
-- third on are.
CREATE OR REPLACE TEMP VIEW parsed AS
WITH trimmed AS (
    SELECT
        line,
        raw,
        problem,
        CASE WHEN problem IS NULL THEN trim("values"[1]) END AS item_word,
        identity(item_word) AS item_id,
        CASE WHEN problem IS NULL THEN phrase("values"[2]) END AS title,
        CASE
            WHEN problem IS NOT NULL THEN []
            WHEN getvariable('genres') IS NULL THEN string_split("values"[3], '|')
            ELSE list_where(getvariable('genres')::VARCHAR[], list_transform("values"[3:], lambda flag: flag = '1'))
        END AS genres,
        CASE WHEN problem IS NULL AND getvariable('genres') IS NULL THEN "values"[4:] ELSE [] END AS more,
        CASE
            WHEN problem IS NOT NULL THEN problem
            WHEN item_id IS NULL THEN 'item id missing'
            WHEN rounded(item_id) THEN 'item id is a rounded number'
            WHEN title IS NULL THEN 'title missing'
        END AS reason
    FROM records
)
SELECT
    line,
    CASE WHEN reason IS NOT NULL THEN raw END AS raw,
    CASE WHEN reason IS NULL THEN item_id END AS item_id,
    CASE WHEN reason IS NULL THEN concat_ws(' ', title, nullif(array_to_string(list_filter(
        list_transform(genres, lambda genre: trim(genre)),
        lambda genre: genre NOT IN ('', 'unknown', '(no genres listed)')), ', '), '')) END AS item_text,
    reason,
    list_transform(more, lambda words: phrase(words)) AS more
FROM trimmed;
