-- What a word stands for, the same for all that is read.
-- meant(word): null for the words that stand for nothing: MySQL's and Hive's \N, pandas' nan, R's NA, Excel's #N/A.
CREATE OR REPLACE TEMP MACRO meant(word) AS
CASE
    WHEN word IN (
        '', '\N', 'NULL', 'null', 'None', 'NaN', 'nan', 'NaT', '<NA>', 'NA', 'N/A', 'n/a', '#N/A', 'undefined'
    ) THEN NULL
    ELSE word
END;

-- phrase(text): what a text stands for, its words one space apart.
CREATE OR REPLACE TEMP MACRO phrase(words) AS meant(trim(regexp_replace(words, '\s+', ' ', 'g')));

-- identity(word): the id that a word stands for. One that was written as a number with a point is the whole number,
-- 12.0 is 12.
CREATE OR REPLACE TEMP MACRO identity(word) AS
CASE
    WHEN contains(word, '.0') THEN regexp_replace(meant(word), '^(-?\d{1,15})\.0+$', '\1')
    ELSE meant(word)
END;

-- rounded(id): one that lost digits before it came here, 1.23457E+11 or 90071992547409930.0.
CREATE OR REPLACE TEMP MACRO rounded(id) AS
CASE
    WHEN contains(id, '.') OR contains(id, '+')
        THEN regexp_full_match(id, '-?\d+(\.\d+)?[eE]\+\d+|-?\d+\.\d+[eE]\d+|-?\d{16,}\.0+')
    ELSE false
END;
