SELECT count(*), count(a) FROM nullable;
SELECT conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint WHERE conrelid = 'nullable'::regclass ORDER BY 1;
