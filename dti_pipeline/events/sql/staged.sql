-- Staged rows, all of them and the good ones. Table files(file, source_file, part) and view parts_read over their rows are
-- there.
CREATE TEMP VIEW staged AS
SELECT
    files.source_file,
    files.file,
    files.file * (1::BIGINT << 40) + line AS "row",  -- file order, then line order
    staged.* EXCLUDE (filename)
FROM parts_read AS staged
INNER JOIN files ON files.part = staged.filename;

CREATE TEMP VIEW good_rows AS
SELECT * EXCLUDE (source_file, file, line, raw, item_text, reason) RENAME (split AS own_split) FROM staged
WHERE reason IS NULL;
