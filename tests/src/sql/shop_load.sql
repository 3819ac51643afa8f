-- One customer orders, an older order moves on, an old one goes.
\set old random(1, 4000)
\set gone random(1, 100000)
BEGIN;
INSERT INTO shop."order" (customer_id, state, placed, note)
SELECT id, 'placed', now(), 'load' FROM shop.customer ORDER BY id LIMIT 1
RETURNING id AS new \gset
INSERT INTO shop.order_item VALUES (:new, 1, 1, 2, 9.50), (:new, 2, 2, 1, 19.99);
UPDATE shop."order" SET state = 'shipped', note = 'moved' || :new WHERE id = :old;
UPDATE shop.customer SET settings = settings || jsonb_build_object('orders', :new)
WHERE id = md5('customer ' || 1 + :old % 900)::uuid;
DELETE FROM shop."order" WHERE id = :gone AND id % 5 = 0;
INSERT INTO shop.event (at, kind, details)
VALUES (now(), 'ordered', jsonb_build_object('order', :new));
END;
