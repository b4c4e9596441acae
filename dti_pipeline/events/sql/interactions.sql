-- Values to typed interactions; `reason` says why a row cannot be one. The first reason counts. `more`: of the further
-- columns.
-- clock, requests, splits: the log has timestamps, ids of requests, a split; lowest, highest: the rating scale, null
-- where it is open.
CREATE OR REPLACE TEMP VIEW parsed AS
WITH trimmed AS (
    SELECT
        line,
        raw,
        problem,
        CASE WHEN problem IS NULL THEN trim("values"[1]) END AS user_word,
        CASE WHEN problem IS NULL THEN trim("values"[2]) END AS item_word,
        CASE WHEN problem IS NULL THEN nullif(trim("values"[3]), '') END AS rating_text,
        CASE WHEN problem IS NULL THEN nullif(trim("values"[4]), '') END AS time_text,
        CASE WHEN problem IS NULL THEN trim(regexp_replace("values"[5], '\s+', ' ', 'g')) END AS text_words,
        CASE WHEN problem IS NULL THEN trim("values"[6]) END AS request_word,
        CASE WHEN problem IS NULL THEN nullif(lower(trim("values"[7])), '') END AS split_text,
        CASE WHEN problem IS NULL THEN "values"[8:] END AS more
    FROM records
),
typed AS (
    SELECT
        *,
        identity(user_word) AS user_id,
        identity(item_word) AS item_id,
        identity(request_word) AS request_id,
        meant(text_words) AS item_text,
        TRY_CAST(rating_text AS DOUBLE) AS rating,
        TRY_CAST(time_text AS DOUBLE) AS clock_value,
        -- Seconds since 1970 reach 1e11 in the year 5138: above, it is milliseconds, microseconds, nanoseconds. A date
        -- so late, such as 9999-12-31, is none.
        coalesce(clock_value / CASE
            WHEN clock_value < 1e11 THEN 1 WHEN clock_value < 1e14 THEN 1e3 WHEN clock_value < 1e17 THEN 1e6 ELSE 1e9
        END, epoch(TRY_CAST(time_text AS TIMESTAMPTZ))) AS seconds,
        CASE
            WHEN split_text IN ('train', 'validation', 'test') THEN split_text
            WHEN split_text IN ('valid', 'val', 'dev') THEN 'validation'
        END AS split
    FROM trimmed
),
judged AS (
    SELECT
        *,
        CASE
            WHEN problem IS NOT NULL THEN problem
            WHEN user_id IS NULL THEN 'user id missing'
            WHEN rounded(user_id) THEN 'user id is a rounded number'
            WHEN item_id IS NULL THEN 'item id missing'
            WHEN rounded(item_id) THEN 'item id is a rounded number'
            WHEN rating_text IS NULL THEN 'rating missing'
            WHEN rating IS NULL OR NOT isfinite(rating) THEN 'rating not a number'
            WHEN rating < getvariable('lowest') OR rating > getvariable('highest') THEN 'rating outside the scale'
            WHEN getvariable('clock') AND time_text IS NULL THEN 'timestamp missing'
            WHEN getvariable('clock') AND seconds < 0 THEN 'timestamp before 1970'
            WHEN getvariable('clock') AND (seconds IS NULL OR NOT seconds < 1e11) THEN 'timestamp not a time'
            WHEN getvariable('requests') AND request_id IS NULL THEN 'request id missing'
            WHEN getvariable('requests') AND rounded(request_id) THEN 'request id is a rounded number'
            WHEN getvariable('splits') AND split_text IS NULL THEN 'split missing'
            WHEN getvariable('splits') AND split IS NULL THEN 'split not train, validation or test'
        END AS reason
    FROM typed
)
SELECT
    line,
    CASE WHEN reason IS NOT NULL THEN raw END AS raw,
    user_id,
    item_id,
    CASE WHEN isfinite(rating) THEN rating END AS rating,
    -- To the microsecond, so that one moment is one number however it was written.
    CASE WHEN seconds BETWEEN 0 AND 1e11 THEN round(seconds * 1e6) / 1e6 END AS "timestamp",
    item_text,
    request_id,
    split,
    reason,
    list_transform(more, lambda words: phrase(words)) AS more
FROM judged;
