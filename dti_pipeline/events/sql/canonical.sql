-- The canonical interactions, in their one order. threshold: label = 1 where the rating is above it.
CREATE TEMP TABLE interactions AS
SELECT
    users.user_id,
    item_id,
    coalesce(titles.item_text, 'item ' || item_id) AS item_text,
    "timestamp",
    rating,
    (rating > getvariable('threshold'))::TINYINT AS label,
    split,
    position::INTEGER AS position,
    titles.item_text IS NULL AS untitled,
    "user"
FROM split_rows
INNER JOIN users USING ("user")
LEFT JOIN titles USING (item_id)
;
