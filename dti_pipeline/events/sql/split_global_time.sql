-- One clock for all users. The cuts are quantiles of the eligible rows' times; rows of one second are never parted.
-- min_history; validation_share, test_share.
CREATE TEMP VIEW split_rows AS
WITH eligible AS (
    SELECT
        "timestamp",
        row_number() OVER (ORDER BY "timestamp") - 1 AS place,
        count(*) OVER () AS total
    FROM history
    WHERE position >= getvariable('min_history')
),
cuts AS (
    SELECT
        min("timestamp") FILTER (WHERE
            place >= floor(total * (1 - getvariable('validation_share') - getvariable('test_share')) + 1e-6)
        ) AS validation,
        min("timestamp") FILTER (WHERE place >= floor(total * (1 - getvariable('test_share')) + 1e-6)) AS test
    FROM eligible
)
SELECT
    history.*,
    CASE
        WHEN "timestamp" < cuts.validation THEN 'train'
        WHEN "timestamp" < cuts.test THEN 'validation'
        ELSE 'test'
    END AS split
FROM history CROSS JOIN cuts;
