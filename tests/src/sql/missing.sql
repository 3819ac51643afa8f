-- Objects that cannot be created on a target, each for another reason, beside rows that can be copied.
CREATE ROLE absent_owner;
CREATE SCHEMA audit;
CREATE TABLE audit.ddl (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tag text NOT NULL);
CREATE FUNCTION audit.log_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO audit.ddl (tag) VALUES (tg_tag);
END $$;
CREATE EVENT TRIGGER log_ddl ON ddl_command_end EXECUTE FUNCTION audit.log_ddl();

CREATE TABLE public.secret (id integer PRIMARY KEY);
CREATE TABLE public.account (id integer PRIMARY KEY, mail text NOT NULL, owner text NOT NULL);
ALTER TABLE public.account OWNER TO absent_owner;
INSERT INTO public.account SELECT n, 'mail ' || n, 'nobody' FROM generate_series(1, 500) AS n;

-- A unique index on a function that was replaced by one that returns equal values.
CREATE FUNCTION public.mail_key(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT t $$;
CREATE UNIQUE INDEX account_mail_key ON public.account (public.mail_key(mail));
COMMENT ON INDEX public.account_mail_key IS 'goes with its index';
CREATE INDEX account_owner ON public.account (owner);
CREATE OR REPLACE FUNCTION public.mail_key(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'x'::text $$;

-- Roles that the restrictive policy keeps out must stay out while it is missing.
ALTER TABLE public.account ENABLE ROW LEVEL SECURITY;
CREATE POLICY everyone ON public.account USING (true);
CREATE POLICY nobody_secret ON public.account AS RESTRICTIVE
    USING (NOT EXISTS (SELECT FROM public.secret s WHERE s.id = account.id));
COMMENT ON POLICY everyone ON public.account IS 'goes with its policy';

-- A security label of a provider that the target has not loaded.
INSERT INTO pg_seclabel (objoid, classoid, objsubid, provider, label)
VALUES ('public.account'::regclass, 'pg_class'::regclass, 2, 'anon', 'MASKED; -- ''x''');

-- The first depends on the second in a way that no dump records.
CREATE MATERIALIZED VIEW public.z_inner AS SELECT count(*) AS n FROM public.account;
CREATE FUNCTION public.inner_count() RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT n FROM public.z_inner);
END $$;
CREATE MATERIALIZED VIEW public.a_outer AS SELECT public.inner_count() AS n;

-- Names that are keywords in other versions.
CREATE FUNCTION public.begin(atomic integer) RETURNS integer LANGUAGE sql AS $$ SELECT $1 $$;
CREATE TYPE public.begin AS (atomic integer, "end" integer);
CREATE FUNCTION public."end"(begin public.begin, atomic integer DEFAULT CASE 1 WHEN 2 THEN 3 END)
    RETURNS public.begin LANGUAGE sql
    BEGIN ATOMIC
        SELECT CASE WHEN atomic > 1 THEN CASE atomic WHEN 2 THEN "end".begin END ELSE begin END;
        SELECT ROW(public.begin(atomic), 1)::public.begin;
    END;
CREATE PROCEDURE public."case"(OUT begin integer) LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
