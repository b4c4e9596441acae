-- The same shares inside each user's own history, rounded down to whole requests: the last rows test, those before
-- them validate.
-- validation_share, test_share.
CREATE TEMP VIEW split_rows AS
WITH counted AS (
    SELECT
        *,
        count(*) OVER (PARTITION BY "user") AS total,
        floor(total * getvariable('test_share') + 1e-6) AS test,
        floor(total * getvariable('validation_share') + 1e-6) AS validation
    FROM history
)
SELECT
    * EXCLUDE (total, test, validation),
    CASE
        WHEN request >= total - test THEN 'test'
        WHEN request >= total - test - validation THEN 'validation'
        ELSE 'train'
    END AS split
FROM counted;
