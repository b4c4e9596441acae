-- One clock for all users. Table cuts(validation, test) is there.
CREATE TEMP VIEW split_rows AS
SELECT
    history.*,
    CASE
        WHEN begins < cuts.validation THEN 'train'
        WHEN begins < cuts.test THEN 'validation'
        ELSE 'test'
    END AS split
FROM history CROSS JOIN cuts;
