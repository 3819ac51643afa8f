-- A transaction that writes, lasts a moment and leaves nothing. After such ones, a snapshot's xmin can be above its xmax.
BEGIN;
UPDATE pgbench_tellers SET tbalance = tbalance + 1000000 WHERE tid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, 1, 1000000, CURRENT_TIMESTAMP);
\sleep 8 ms
ROLLBACK;
