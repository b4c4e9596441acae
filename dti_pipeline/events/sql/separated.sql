-- Lines of separated fields (CSV, TSV, `::`) to the values that are asked for.
-- separator; quoted: fields may stand in quotes; record: a whole record, each field followed by a separator;
-- width: fields in a line; places: 1-based field of each value, 0 where the log has none.
CREATE OR REPLACE TEMP VIEW records AS
WITH stripped AS (
    SELECT
        line, utf8, strlen(text) > getvariable('longest') AS too_long,
        CASE WHEN too_long THEN left(text, getvariable('shown')) ELSE rtrim(text, e'\r\n') END AS text
    FROM lines
),
fields AS (
    SELECT
        line,
        text AS raw,
        utf8,
        too_long,
        getvariable('quoted') AND contains(text, '"') AS in_quotes,
        CASE
            WHEN in_quotes
                THEN regexp_extract_all(text || getvariable('separator'), getvariable('field'), 1)
            ELSE string_split(text, getvariable('separator'))
        END AS fields
    FROM stripped
)
SELECT
    line,
    raw,
    CASE
        WHEN too_long THEN getvariable('too_long')
        WHEN NOT utf8 THEN 'not UTF-8 text'
        WHEN trim(raw) = '' THEN 'blank line'
        WHEN in_quotes AND NOT regexp_full_match(raw || getvariable('separator'), getvariable('record'))
            THEN 'quotes do not match'
        WHEN len(fields) <> getvariable('width') THEN 'wrong number of fields'
    END AS problem,
    CASE WHEN in_quotes THEN
        list_transform(getvariable('places'), lambda place: CASE
            WHEN starts_with(fields[place], '"') THEN replace(fields[place][2:-2], '""', '"') ELSE fields[place] END)
        ELSE list_transform(getvariable('places'), lambda place: fields[place])
    END AS "values"
FROM fields;
