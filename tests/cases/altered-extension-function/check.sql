SELECT count(*), md5(string_agg(concat_ws('|', id, name, city), ',' ORDER BY id)) FROM public.partner;
SELECT count(*), sum(partner) FROM public.visit;
SELECT conname, convalidated FROM pg_constraint WHERE conrelid = 'public.visit'::regclass AND contype = 'f';
-- Indexes that call unaccent() are missing on the target, and listed.
SELECT indexrelid::regclass::text COLLATE "C", indisvalid FROM pg_index WHERE indrelid = 'public.partner'::regclass AND indisprimary;
