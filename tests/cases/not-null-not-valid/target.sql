CREATE TABLE nullable (id integer PRIMARY KEY, a integer);
ALTER TABLE nullable ADD CONSTRAINT nullable_a NOT NULL a NOT VALID;
