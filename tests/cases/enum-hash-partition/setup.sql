CREATE SCHEMA blog;
CREATE TYPE blog.mood AS ENUM ('glad', 'sad', 'calm', 'cross');
CREATE TABLE blog.mooded (mood blog.mood, id integer, PRIMARY KEY (mood, id)) PARTITION BY HASH (mood);
CREATE TABLE blog.mooded_0 PARTITION OF blog.mooded FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE blog.mooded_1 PARTITION OF blog.mooded FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO blog.mooded SELECT (enum_range(NULL::blog.mood))[1 + n % 4], n FROM generate_series(1, 100) AS n;
CREATE TABLE blog.listed (mood blog.mood, id integer, PRIMARY KEY (mood, id)) PARTITION BY LIST (mood);
CREATE TABLE blog.listed_glad PARTITION OF blog.listed FOR VALUES IN ('glad');
INSERT INTO blog.listed SELECT 'glad', n FROM generate_series(1, 100) AS n;
