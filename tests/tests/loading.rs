//! Rows arrive although their checks and generated columns need more than the rows: other tables,
//! settings, names that resolve, or constraints that were never validated.

use std::time::Duration;

use anyhow::{Result, ensure};
use steep_tests::cluster::Cluster;
use steep_tests::pg::{Database, Installation};
use steep_tests::{compare, residue};

/// Constraints that rows fail while they are loaded, and that return afterwards.
const CONSTRAINTS: &str = "
    CREATE SCHEMA ref;
    CREATE TABLE ref.code (code text PRIMARY KEY);
    INSERT INTO ref.code SELECT 'T' || n FROM generate_series(0, 39) AS n;
    CREATE FUNCTION ref.known(wanted text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
    BEGIN RETURN EXISTS (SELECT FROM ref.code AS c WHERE c.code = wanted); END $$;
    -- Larger than what it reads, so it is copied first.
    CREATE TABLE line (id integer PRIMARY KEY, code text CONSTRAINT known CHECK (ref.known(code)), body text);
    COMMENT ON CONSTRAINT known ON line IS 'read elsewhere';
    INSERT INTO line SELECT n, 'T' || n % 40, repeat('x', 100) FROM generate_series(1, 20000) AS n;
    -- True when it was validated, and no more.
    CREATE TABLE old_line (id integer PRIMARY KEY, code text CONSTRAINT was_known CHECK (ref.known(code)));
    INSERT INTO ref.code VALUES ('R1');
    INSERT INTO old_line SELECT n, 'R1' FROM generate_series(1, 100) AS n;
    DELETE FROM ref.code WHERE code = 'R1';
    -- Never true of all rows.
    CREATE DOMAIN short AS text;
    CREATE TABLE lax (id integer PRIMARY KEY, n integer, s short);
    INSERT INTO lax VALUES (1, -1, 'much too long'), (2, 1, 'ok');
    ALTER TABLE lax ADD CONSTRAINT positive CHECK (n > 0) NOT VALID;
    ALTER DOMAIN short ADD CONSTRAINT is_short CHECK (length(VALUE) < 5) NOT VALID;
    -- A domain that is NOT NULL, and a column of it that holds NULL (PostgreSQL manual, CREATE DOMAIN).
    CREATE DOMAIN sure AS integer NOT NULL CONSTRAINT sure_known CHECK (ref.known('T' || coalesce(VALUE, 0) % 40));
    CREATE DOMAIN certain AS integer NOT NULL;
    CREATE TABLE doubt (id integer PRIMARY KEY, d sure, e certain);
    INSERT INTO doubt VALUES (1, 1, 1);
    INSERT INTO doubt VALUES (2, (SELECT d FROM doubt WHERE false), 2);
    -- Domains that PostgreSQL cannot check again: rows pass the one, and passed the other when they were written.
    CREATE FUNCTION ref.formed(t text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN t ~ ''^T''; END';
    CREATE DOMAIN form AS text CONSTRAINT form_good CHECK (ref.formed(VALUE));
    CREATE DOMAIN live AS text CONSTRAINT live_known CHECK (ref.known(VALUE));
    COMMENT ON CONSTRAINT live_known ON DOMAIN live IS 'not for ever';
    CREATE TYPE both_of AS (f form, l live);
    INSERT INTO ref.code VALUES ('T99');
    CREATE TABLE boxed (id integer PRIMARY KEY, b both_of, f form[]);
    INSERT INTO boxed SELECT n, ROW('T1', 'T99')::both_of, ARRAY['T1', 'T2']::form[] FROM generate_series(1, 100) AS n;
    DELETE FROM ref.code WHERE code = 'T99';
    -- Inherited, and a child's own of the same name.
    CREATE TABLE parted (id integer, code text CONSTRAINT parted_known CHECK (ref.known(code)))
        PARTITION BY RANGE (id);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
    CREATE TABLE parted_2 (id integer NOT NULL, code text CONSTRAINT parted_known CHECK (ref.known(code)));
    ALTER TABLE parted_2 ALTER id DROP NOT NULL;
    ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES FROM (100) TO (200);
    INSERT INTO parted SELECT n, 'T' || n % 40 FROM generate_series(0, 199) AS n;
    ALTER TABLE parted_1 REPLICA IDENTITY FULL; ALTER TABLE parted_2 REPLICA IDENTITY FULL;
    ";

/// Values that depend on settings, and columns that refer to objects.
const VALUES: &str = "
    CREATE FUNCTION local_day(at timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS 'SELECT at::date';
    CREATE FUNCTION words(t text) RETURNS tsvector LANGUAGE sql IMMUTABLE AS 'SELECT to_tsvector(t)';
    CREATE TABLE visit (id integer PRIMARY KEY, at timestamptz, note text,
        day date GENERATED ALWAYS AS (local_day(at)) STORED, word tsvector GENERATED ALWAYS AS (words(note)) STORED,
        tenant text CONSTRAINT own_tenant CHECK (tenant = current_setting('app.tenant')));
    INSERT INTO visit (id, at, note, tenant)
        SELECT n, timestamptz '2026-03-01 00:30+09' + n * interval '1 hour', 'die Patienten liefen ' || n, 't1'
        FROM generate_series(1, 500) AS n;
    CREATE TABLE reading (id integer, at timestamptz) PARTITION BY RANGE (local_day(at));
    CREATE TABLE reading_03 PARTITION OF reading FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
    CREATE TABLE reading_rest PARTITION OF reading DEFAULT;
    ALTER TABLE reading_03 REPLICA IDENTITY FULL; ALTER TABLE reading_rest REPLICA IDENTITY FULL;
    INSERT INTO reading SELECT n, timestamptz '2026-02-28 12:00+09' + n * interval '1 hour'
        FROM generate_series(1, 500) AS n;
    CREATE INDEX visit_day ON visit (day);
    CREATE TABLE catalog_of (id integer PRIMARY KEY, what regclass);
    INSERT INTO catalog_of VALUES (1, 'visit'), (2, 'visit_day'), (3, 'visit_pkey'), (4, 'line_pkey'), (5, NULL);
    ";

const CHANGES: &str = "
    INSERT INTO ref.code VALUES ('N1');
    INSERT INTO line SELECT n, 'N1', 'later' FROM generate_series(30001, 30010) AS n;
    UPDATE line SET body = 'touched' WHERE id <= 10;
    INSERT INTO lax VALUES (3, 3, 'new');
    INSERT INTO parted VALUES (50, 'N1'), (150, 'N1');
    INSERT INTO visit (id, at, note, tenant) VALUES (1001, '2026-07-01 03:00+09', 'gelaufen', 't1');
    INSERT INTO reading VALUES (1001, '2026-03-31 23:00Z'), (1002, '2026-04-01 03:00+09');
    INSERT INTO catalog_of VALUES (6, 'visit_day');";

/// Constraints with their definitions and whether they are validated.
fn constraints(database: &Database) -> Result<Vec<Vec<String>>> {
    database.rows(
        "SELECT coalesce(conrelid::regclass::text, contypid::regtype::text), conname, convalidated,
            conislocal, coninhcount, regexp_replace(pg_get_constraintdef(oid), ' NOT VALID$', ''),
            obj_description(oid, 'pg_constraint')
        FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace
        ORDER BY conrelid::regclass::text COLLATE \"C\", conname",
    )
}

/// Those rows of [`constraints`], where these are not validated any more.
fn not_valid(mut rows: Vec<Vec<String>>, names: &[&str]) -> Vec<Vec<String>> {
    for row in &mut rows {
        if names.contains(&row[1].as_str()) {
            row[2] = "f".to_owned();
        }
    }
    rows
}

fn settings(database: &Database) -> Result<String> {
    database.sql(
        "SELECT e FROM pg_db_role_setting s, unnest(s.setconfig) AS e
         WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
         ORDER BY lower(e) COLLATE \"C\"",
    )
}

fn changes_arrive(cluster: &Cluster, targets: &[&str]) -> Result<()> {
    let source = cluster.database("node_a");
    source.sql(CHANGES)?;
    cluster.wait_drained("node_a")?;
    for target in targets {
        compare::rows(&source, &cluster.database(target))?.none()?;
    }
    Ok(())
}

#[test]
fn what_rows_do_not_pass_as_they_come_is_put_aside_and_settings_come_along() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(
        "ALTER DATABASE app SET timezone = 'Asia/Tokyo';
         ALTER DATABASE app SET default_text_search_config = 'pg_catalog.german';
         ALTER DATABASE app SET app.tenant = 't1';",
    )?;
    source.sql(CONSTRAINTS)?;
    source.sql(VALUES)?;
    target.sql("ALTER DATABASE app SET synchronous_commit = off")?;
    let before = settings(&target)?;

    // A cancel restores the settings too.
    let following = cluster.init_spawn(&["--max-rate", "500kB"])?;
    cluster.wait_copying("node_b")?;
    ensure!(settings(&target)?.contains("Asia/Tokyo"), "not set yet");
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    following.finish(Duration::from_secs(20))?.expect(4)?;
    assert_eq!(settings(&target)?, before);
    residue::of_everything(&target)?.none()?;

    cluster.init(&[])?.expect(0)?;
    compare::rows(&source, &target)?.none()?;
    let report = cluster.cli(&["status", "node_b", "--last-report"])?.text();
    for told in [
        "was_known",
        "settings_taken_over",
        "NOT NULL",
        "does not check a domain again",
    ] {
        assert!(report.contains(told), "{told} is not in {report}");
    }
    // All exist; of the validated ones, only those that rows violate are no longer validated.
    let wanted = not_valid(constraints(&source)?, &["was_known", "live_known"]);
    assert_eq!(constraints(&target)?, wanted);
    let not_null = "SELECT string_agg(typname, ',') FROM pg_type WHERE typnotnull AND typtype = 'd'
        AND typnamespace = 'public'::regnamespace";
    assert_eq!(target.sql(not_null)?, "certain");
    changes_arrive(&cluster, &["node_b"])?;
    let refused = target.sql("SET app.tenant = 'other'; UPDATE visit SET note = '' WHERE id = 1");
    assert!(refused.is_err(), "the target checks nothing");
    Ok(())
}

#[test]
fn tables_that_are_there_and_a_native_copy_take_the_same_rows() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    source.sql(CONSTRAINTS)?;
    let schema = compare::dump(&source)?;
    cluster.database("node_b").sql(&schema)?;
    let before = constraints(&cluster.database("node_b"))?;
    cluster.init(&[])?.expect(0)?;
    let native = [
        "init", "node_c", "--from", "node_a", "--yes", "--method", "native",
    ];
    cluster.cli(&native)?.expect(0)?;
    let lost = ["was_known", "live_known"];
    // PostgreSQL's own copy would be refused for ever by what stays.
    let natively = ["was_known", "live_known", "form_good"];
    for (target, lost) in [("node_b", &lost[..]), ("node_c", &natively)] {
        compare::rows(&source, &cluster.database(target))?.none()?;
        let wanted = not_valid(before.clone(), lost);
        assert_eq!(constraints(&cluster.database(target))?, wanted, "{target}");
    }
    Ok(())
}

/// Functions that find their helpers by `search_path`, where it is empty.
const LOOSE: &str = "
    CREATE FUNCTION digits_of(t text) RETURNS text LANGUAGE sql IMMUTABLE
        AS $$ SELECT regexp_replace(t, '[^0-9]', '', 'g') $$;
    CREATE FUNCTION looks_like_phone(t text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN RETURN t IS NULL OR length(digits_of(t)) BETWEEN 5 AND 15; END $$;
    CREATE FUNCTION dial_code(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN RETURN '+' || public.digits_of(t) || prefix(); END $$;
    CREATE FUNCTION prefix() RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT ''::text $$;
    CREATE FUNCTION sound(t text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE SET search_path = public AS $$
    BEGIN RETURN looks_like_phone(t); END $$;
    CREATE DOMAIN phone AS text CHECK (looks_like_phone(VALUE));
    CREATE TABLE contact (id integer PRIMARY KEY, number phone, fax text CHECK (sound(fax)));
    INSERT INTO contact SELECT n, '+41 44 ' || 1000000 + n, '031 ' || 3000000 + n FROM generate_series(1, 300) AS n;
    CREATE TABLE line (id integer PRIMARY KEY, number text, code text GENERATED ALWAYS AS (dial_code(number)) STORED);
    INSERT INTO line (id, number) SELECT n, '031 ' || 3000000 + n FROM generate_series(1, 300) AS n;
    CREATE FUNCTION squeeze(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT replace(t, ' ', '') $$;
    CREATE FUNCTION mail_key(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE
        AS $$ BEGIN RETURN lower(public.squeeze(t)); END $$;
    CREATE TABLE subscriber (id integer PRIMARY KEY, mail text);
    INSERT INTO subscriber SELECT n, 'User ' || n FROM generate_series(1, 300) AS n;
    CREATE INDEX subscriber_mail ON subscriber (mail_key(mail));
    CREATE OR REPLACE FUNCTION mail_key(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE
        AS $$ BEGIN RETURN lower(squeeze(t)); END $$;";

/// An extension whose files the server writes, on the first version that looks for extensions in
/// other directories.
fn with_extension(source: &Database, target: &Database, place: &str) -> Result<()> {
    let path = format!("ALTER DATABASE app SET extension_control_path = '$system:{place}'");
    source.sql(&format!(
        "COPY (SELECT 1) TO PROGRAM 'mkdir -p {place}/extension';
         COPY (SELECT line FROM unnest(ARRAY['default_version = ''1.0''', 'relocatable = false',
             'schema = rulebook']) AS line) TO '{place}/extension/rulebook.control';
         COPY (SELECT line FROM unnest(ARRAY[
             'CREATE TABLE rulebook.rule (id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, name text, shipped boolean NOT NULL DEFAULT false);',
             'CREATE TABLE rulebook.exception (rule_id integer NOT NULL REFERENCES rulebook.rule, who text);',
             'CREATE SEQUENCE rulebook.revision;',
             'INSERT INTO rulebook.rule (name, shipped) VALUES (''shipped 1'', true), (''shipped 2'', true);',
             'SELECT setval(''rulebook.rule_id_seq'', 100);',
             'SELECT pg_catalog.pg_extension_config_dump(''rulebook.exception'', '''');',
             'SELECT pg_catalog.pg_extension_config_dump(''rulebook.rule'', ''WHERE NOT shipped'');',
             'SELECT pg_catalog.pg_extension_config_dump(''rulebook.revision'', '''');']) AS line)
             TO '{place}/extension/rulebook--1.0.sql';
         {path}"
    ))?;
    target.sql(&path)?;
    source.sql(
        "CREATE SCHEMA rulebook;
         CREATE EXTENSION rulebook;
         INSERT INTO rulebook.rule (name) VALUES ('our ''own'), ('ours 2');
         INSERT INTO rulebook.exception SELECT id, 'somebody' FROM rulebook.rule WHERE NOT shipped;
         SELECT setval('rulebook.revision', 77) \\g /dev/null
         CREATE TABLE decision (id integer PRIMARY KEY, rule_id integer REFERENCES rulebook.rule);
         INSERT INTO decision SELECT n, 101 + n % 2 FROM generate_series(1, 30) AS n;",
    )?;
    Ok(())
}

#[test]
fn functions_that_need_a_path_and_rows_of_extensions_are_named_beforehand() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(LOOSE)?;
    let extended = Installation::preferred()?.major() >= 18;
    let place = format!("/tmp/steep_loading_{}", std::process::id());
    if extended {
        with_extension(&source, &target, &place)?;
    }
    let doctor = ["doctor", "node_b", "--from", "node_a"];
    let refused = cluster.cli(&doctor)?.expect(1)?.text();
    for told in [
        "search_path_needed",
        "looks_like_phone(t text) does not qualify digits_of",
        "dial_code(t text) does not qualify prefix",
        "domain public.phone",
        "generated column public.line.code",
        "SET search_path = \"public\"",
        "search_path_index",
        "subscriber_mail",
    ] {
        assert!(refused.contains(told), "{told} is not in {refused}");
    }
    assert!(!refused.contains("sound("), "{refused}");
    source.sql(
        "ALTER FUNCTION looks_like_phone(text) SET search_path = public;
         ALTER FUNCTION dial_code(text) SET search_path = public;
         ALTER FUNCTION mail_key(text) SET search_path = public;",
    )?;
    let fine = cluster.cli(&doctor)?.expect(0)?.text();
    assert!(!fine.contains("search_path"), "{fine}");
    if extended {
        for told in [
            "rulebook.rule (rows: 2",
            "rulebook.exception (rows: 2",
            "rulebook.revision",
        ] {
            assert!(fine.contains(told), "{told} is not in {fine}");
        }
    }
    cluster.init(&[])?.expect(0)?;
    compare::rows(&source, &target)?.none()?;
    if extended {
        for sql in [
            "SELECT id, name, shipped FROM rulebook.rule ORDER BY id",
            "SELECT rule_id, who FROM rulebook.exception ORDER BY 1",
            "SELECT last_value, is_called FROM rulebook.revision",
            "SELECT conname, convalidated FROM pg_constraint WHERE conrelid = 'decision'::regclass ORDER BY 1",
        ] {
            assert_eq!(target.rows(sql)?, source.rows(sql)?, "{sql}");
        }
        source.sql(&format!("COPY (SELECT 1) TO PROGRAM 'rm -r {place}'"))?;
    }
    Ok(())
}

#[test]
fn what_calls_a_function_of_an_extension_that_was_altered_by_hand_is_named_beforehand() -> Result<()>
{
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql("CREATE EXTENSION unaccent")?;
    source.sql("ALTER FUNCTION public.unaccent(text) IMMUTABLE")?;
    source.sql(
        "CREATE TABLE street (id integer PRIMARY KEY, name text,
             plain text GENERATED ALWAYS AS (lower(public.unaccent(name))) STORED);
         INSERT INTO street (id, name) SELECT n, 'Liberté ' || n FROM generate_series(1, 100) AS n;
         CREATE INDEX street_name ON street (public.unaccent(name));
         -- PostgreSQL takes a check whatever it calls.
         CREATE TABLE town (id integer PRIMARY KEY, name text CHECK (public.unaccent(name) <> ''));
         INSERT INTO town VALUES (1, 'Genève');",
    )?;
    let doctor = ["doctor", "node_b", "--from", "node_a"];
    let refused = cluster.cli(&doctor)?.expect(1)?.text();
    for told in [
        "extension_function_altered",
        "generated column public.street.plain",
        "index street_name of public.street",
        "CREATE EXTENSION IF NOT EXISTS \"unaccent\" WITH SCHEMA \"public\"",
        "ALTER FUNCTION public.unaccent(text) IMMUTABLE",
    ] {
        assert!(refused.contains(told), "{told} is not in {refused}");
    }
    assert!(!refused.contains("public.town"), "{refused}");
    let init = cluster.init(&[])?.expect(1)?.text();
    assert!(init.contains("extension_function_altered"), "{init}");
    target.sql("CREATE EXTENSION unaccent")?;
    let still = cluster.cli(&doctor)?.expect(1)?.text();
    assert!(still.contains("extension_function_altered"), "{still}");
    target.sql("ALTER FUNCTION public.unaccent(text) IMMUTABLE")?;
    let fine = cluster.cli(&doctor)?.expect(0)?.text();
    assert!(!fine.contains("extension_function_altered"), "{fine}");
    cluster.init(&[])?.expect(0)?;
    compare::rows(&source, &target)?.none()?;
    let indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname";
    assert_eq!(target.rows(indexes)?, source.rows(indexes)?);
    Ok(())
}
