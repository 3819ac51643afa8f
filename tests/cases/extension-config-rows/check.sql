-- 'ours 4' is inserted while rows are copied, and is not replicated.
SELECT id, name, shipped FROM rulebook.rule WHERE name <> 'ours 4' ORDER BY id;
SELECT rule_id, who FROM rulebook.exception ORDER BY 1, 2;
SELECT last_value, is_called FROM rulebook.revision;
SELECT count(*), sum(rule_id) FROM public.decision;
SELECT count(*) FROM public.decision d WHERE d.id < 1000 AND NOT EXISTS (SELECT FROM rulebook.rule r WHERE r.id = d.rule_id);
SELECT conname, convalidated FROM pg_constraint WHERE conrelid = 'public.decision'::regclass AND contype = 'f';
