-- Staged rows, all of them, those of the load, and all good ones. Table files(file, source_file, part) and views parts_read
-- and own_parts_read over their rows and those of the load's files are there.
-- first_file: number of the load's first file, 0 for a whole log.
CREATE TEMP VIEW staged AS
SELECT
    files.source_file,
    files.file,
    files.file * (1::BIGINT << 40) + line AS "row",  -- file order, then line order
    staged.* EXCLUDE (filename)
FROM parts_read AS staged
INNER JOIN files ON files.part = staged.filename;

CREATE TEMP VIEW own_staged AS
SELECT
    files.source_file,
    files.file,
    files.file * (1::BIGINT << 40) + line AS "row",
    staged.* EXCLUDE (filename)
FROM own_parts_read AS staged
INNER JOIN files ON files.part = staged.filename
WHERE files.file >= getvariable('first_file');

CREATE TEMP VIEW good_rows AS
SELECT * EXCLUDE (source_file, file, line, raw, item_text, reason) RENAME (split AS own_split) FROM staged
WHERE reason IS NULL;
