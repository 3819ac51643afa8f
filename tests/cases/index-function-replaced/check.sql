SELECT count(*), md5(string_agg(concat_ws('|', id, mail, body), ',' ORDER BY id)) FROM public.subscriber;
SELECT count(*), sum(subscriber_id) FROM public.bystander;
-- The two indexes on the function are missing on the target, and listed.
SELECT indexrelid::regclass::text COLLATE "C", indisvalid FROM pg_index
WHERE indrelid IN ('public.subscriber'::regclass, 'public.bystander'::regclass) AND indisprimary ORDER BY 1;
SELECT conname, convalidated FROM pg_constraint WHERE conrelid = 'public.bystander'::regclass AND contype = 'f';
