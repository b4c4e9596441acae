-- slot(user_id): where the hash of a user's id falls, 0 to 4095: the first three hexadecimal digits of the MD5 of its
-- UTF-8 bytes.
CREATE TEMP MACRO slot(user_id) AS ('0x' || left(md5(user_id), 3))::INTEGER;
