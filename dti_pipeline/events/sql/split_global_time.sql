-- One clock for all users. The cuts are quantiles of the times at which the eligible rows' requests begin; rows of one
-- such second are never parted.
-- min_history; validation_share, test_share.
CREATE TEMP VIEW split_rows AS
WITH eligible AS (
    SELECT
        begins,
        row_number() OVER (ORDER BY begins) - 1 AS place,
        count(*) OVER () AS total
    FROM history
    WHERE request >= getvariable('min_history')
),
cuts AS (
    SELECT
        min(begins) FILTER (WHERE
            place >= floor(total * (1 - getvariable('validation_share') - getvariable('test_share')) + 1e-6)
        ) AS validation,
        min(begins) FILTER (WHERE place >= floor(total * (1 - getvariable('test_share')) + 1e-6)) AS test
    FROM eligible
)
SELECT
    history.*,
    CASE
        WHEN begins < cuts.validation THEN 'train'
        WHEN begins < cuts.test THEN 'validation'
        ELSE 'test'
    END AS split
FROM history CROSS JOIN cuts;
