CREATE SCHEMA shop;
CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.touched := true; RETURN new; END $$;
CREATE TABLE shop.orders (id integer PRIMARY KEY, touched boolean);
CREATE TABLE shop.customer (id integer PRIMARY KEY, touched boolean);
CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.touch();
CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.touch();
ALTER TABLE shop.orders ENABLE ALWAYS TRIGGER touch;
INSERT INTO shop.orders SELECT n FROM generate_series(1, 2000) AS n;
INSERT INTO shop.customer SELECT n FROM generate_series(1, 2000) AS n;
