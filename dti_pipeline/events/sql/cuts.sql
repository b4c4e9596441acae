-- When validation and test begin, by one clock for all users: quantiles of the times at which the eligible rows' requests
-- begin; rows of one such second are never parted.
-- min_history; validation_share, test_share.
CREATE TEMP TABLE cuts AS
WITH eligible AS (
    SELECT
        begins,
        row_number() OVER (ORDER BY begins) - 1 AS place,
        count(*) OVER () AS total
    FROM history
    WHERE request >= getvariable('min_history')
)
SELECT
    min(begins) FILTER (WHERE
        place >= floor(total * (1 - getvariable('validation_share') - getvariable('test_share')) + 1e-6)
    ) AS validation,
    min(begins) FILTER (WHERE place >= floor(total * (1 - getvariable('test_share')) + 1e-6)) AS test
FROM eligible;
