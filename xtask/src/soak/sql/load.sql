\set account random(1, 20000)
\set amount random(-1000, 1000)
\set slot random(1, 200)
\set parted random(1, 8000)
\set region random(1, 4)
\set large random(1, 12000)
\set wide random(1, 11000)
\set small random(1, 100)
\set which random(1, 4)
BEGIN \;
UPDATE soak.account SET balance = balance + :amount WHERE id = :account \;
INSERT INTO soak.entry (account, amount) VALUES (:account, :amount) \;
WITH gone AS (DELETE FROM soak.loose WHERE slot = :slot RETURNING amount)
    INSERT INTO soak.loose SELECT :slot, coalesce(sum(amount), 0) + :amount FROM gone \;
UPDATE soak.parted SET amount = amount + :amount, region = :region WHERE id = :parted \;
UPDATE soak.large SET amount = amount + :amount WHERE id = :large \;
UPDATE soak.wide SET amount = amount + :amount WHERE id = :wide \;
WITH gone AS (DELETE FROM soak.small_:which WHERE id = :small RETURNING amount),
    was AS (SELECT coalesce(sum(amount), 0) AS amount FROM gone)
    INSERT INTO soak.small_:which AS now SELECT :small, was.amount + :amount FROM was
    ON CONFLICT (id) DO UPDATE SET amount = now.amount + :amount \;
COMMIT;
