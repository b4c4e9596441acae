-- The canonical interactions, without further columns of the log. Table known("user", request, known) is there.
-- threshold: label = 1 where the rating is above it; until_test: no label of a test row is known.
CREATE TEMP TABLE first_tests AS
SELECT
    "user",
    min(position) AS first_test
FROM split_rows
WHERE split = 'test' AND getvariable('until_test')
GROUP BY "user";

CREATE TEMP TABLE labelled AS
SELECT
    users.user_id,
    item_id,
    coalesce(titles.item_text, 'item ' || item_id) AS item_text,
    "timestamp",
    rating,
    (rating > getvariable('threshold'))::TINYINT AS label,
    split,
    position::INTEGER AS position,
    request::INTEGER AS request,
    least(known, first_test)::INTEGER AS known,
    titles.item_text IS NULL AS untitled,
    "user",
    "row"
FROM split_rows
INNER JOIN users USING ("user")
INNER JOIN known USING ("user", request)
LEFT JOIN first_tests USING ("user")
LEFT JOIN titles USING (item_id)
;
