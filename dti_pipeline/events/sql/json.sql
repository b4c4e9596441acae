-- Lines of JSON objects to the values that are asked for.
-- pointers: JSON pointer of each value; '/' and a key no object has where the log has none. plain: the places of those
-- that no list or record can be.
CREATE OR REPLACE TEMP VIEW records AS
WITH stripped AS (
    SELECT
        line, utf8, strlen(text) > getvariable('longest') AS too_long,
        CASE WHEN too_long THEN left(text, getvariable('shown')) ELSE rtrim(text, e'\r\n') END AS text,
        utf8 AND json_valid(text) AS valid
    FROM lines
)
SELECT
    line,
    text AS raw,
    CASE
        WHEN too_long THEN getvariable('too_long')
        WHEN NOT utf8 THEN 'not UTF-8 text'
        WHEN trim(text) = '' THEN 'blank line'
        WHEN NOT valid THEN 'not JSON'
        WHEN json_type(text) <> 'OBJECT' THEN 'not a JSON object'
        WHEN list_has_any(
            list_transform(getvariable('plain'), lambda place: json_type(text, getvariable('pointers')[place])),
            ['OBJECT', 'ARRAY']
        ) THEN 'a list or a record in place of a value'
    END AS problem,
    CASE WHEN problem IS NULL THEN json_extract_string(text, getvariable('pointers')) END AS "values"
FROM stripped;
