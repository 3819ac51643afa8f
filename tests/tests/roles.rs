//! Agents without superuser rights: the role described in the README suffices, and missing rights
//! are reported before anything is touched.

use anyhow::Result;
use steep_tests::cluster::{CLI_LIMIT, Cluster};
use steep_tests::pg::Database;
use steep_tests::{compare, residue, wait};

/// The roles of the README: each owns its database and everything in it.
fn owned_databases() -> Result<Option<Cluster>> {
    let Some(mut cluster) = Cluster::of_owners("keeper")? else {
        return Ok(None);
    };
    fill(&cluster.database("node_a"))?;
    cluster.start_coordinator()?;
    Ok(Some(cluster))
}

fn fill(database: &Database) -> Result<()> {
    database.sql(
        "SET ROLE keeper;
         CREATE SCHEMA shop;
         CREATE TABLE shop.customer (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE);
         CREATE TABLE shop.sale (id bigserial PRIMARY KEY, customer int REFERENCES shop.customer, at timestamptz);
         CREATE INDEX ON shop.sale (at);
         INSERT INTO shop.customer (name) SELECT 'customer ' || n FROM generate_series(1, 1000) n;
         INSERT INTO shop.sale (customer, at)
             SELECT 1 + n % 1000, now() - n * interval '1 s' FROM generate_series(1, 50000) n",
    )?;
    Ok(())
}

fn grant(cluster: &Cluster) -> Result<()> {
    let target = cluster.database("node_b");
    target.sql("GRANT pg_create_subscription TO keeper")?;
    target.sql("GRANT SET ON PARAMETER session_replication_role TO keeper")?;
    Ok(())
}

/// The target's server logs all statements.
fn log_everything(cluster: &Cluster) -> Result<()> {
    let target = cluster.database("node_b");
    for (name, value) in [
        ("log_statement", "all"),
        ("log_min_duration_statement", "0"),
        ("log_min_error_statement", "debug5"),
    ] {
        target.sql(&format!("ALTER ROLE keeper SET {name} = '{value}'"))?;
    }
    Ok(())
}

/// Neither server's log contains the password that the target's server uses for the source's.
fn no_password_in_logs(cluster: &Cluster) -> Result<()> {
    let password = cluster.node("node_a").server().password();
    for node in ["node_a", "node_b"] {
        let log = std::fs::read_to_string(cluster.node(node).server().log())?;
        assert!(
            !log.contains(password),
            "the log of {node} tells the password"
        );
        let told = node == "node_a" || log.contains("CREATE SUBSCRIPTION");
        assert!(told, "the log of {node} does not tell statements");
    }
    Ok(())
}

/// Any role may keep the WAL writer awake.
fn the_wal_writer_was_kept_at_work(cluster: &Cluster) -> Result<()> {
    let log = std::fs::read_to_string(cluster.node("node_b").server().log())?;
    assert!(log.contains("pg_logical_emit_message(false"), "{log}");
    let denied = "permission denied for function pg_logical_emit_message";
    assert!(!log.contains(denied), "{log}");
    Ok(())
}

fn start_agents(cluster: &mut Cluster) -> Result<()> {
    cluster.start_agent("node_a")?;
    cluster.start_agent("node_b")?;
    cluster.wait_online(&["node_a", "node_b"])
}

#[test]
fn owners_of_their_databases_replicate_without_a_superuser() -> Result<()> {
    let Some(mut cluster) = owned_databases()? else {
        return Ok(());
    };
    grant(&cluster)?;
    log_everything(&cluster)?;
    start_agents(&mut cluster)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    cluster.init(&[])?.expect(0)?;
    source.sql("INSERT INTO shop.customer (name) VALUES ('afterwards')")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    compare::schema(&source, &target)?.none()?;
    the_wal_writer_was_kept_at_work(&cluster)?;
    no_password_in_logs(&cluster)
}

#[test]
fn the_native_method_keeps_its_password_out_of_logs_as_well() -> Result<()> {
    let Some(mut cluster) = owned_databases()? else {
        return Ok(());
    };
    grant(&cluster)?;
    log_everything(&cluster)?;
    start_agents(&mut cluster)?;
    cluster.init(&["--method", "native"])?.expect(0)?;
    cluster.wait_drained("node_a")?;
    compare::rows(&cluster.database("node_a"), &cluster.database("node_b"))?.none()?;
    no_password_in_logs(&cluster)
}

#[test]
fn a_right_that_is_missing_is_named_with_the_statement_that_grants_it() -> Result<()> {
    let Some(mut cluster) = owned_databases()? else {
        return Ok(());
    };
    start_agents(&mut cluster)?;
    let refused = cluster.init(&[])?.expect(1)?;
    let said = format!("{refused:?}").replace(['\\', '"'], "");
    for fix in [
        "GRANT pg_create_subscription TO keeper",
        "GRANT SET ON PARAMETER session_replication_role TO keeper",
    ] {
        assert!(said.contains(fix), "no {fix:?} in {said}");
    }
    assert_eq!(cluster.state("node_b")?, "failed");
    residue::of_jobs(&cluster.database("node_a"))?.none()?;
    residue::of_everything(&cluster.database("node_b"))?.none()
}

/// The target's server cannot reach the source's: its own log must not contain the password,
/// although only superusers may disable the logging that would write it.
#[test]
fn a_refused_subscription_leaves_no_password_in_the_servers_log() -> Result<()> {
    let Some(mut cluster) = owned_databases()? else {
        return Ok(());
    };
    grant(&cluster)?;
    log_everything(&cluster)?;
    start_agents(&mut cluster)?;
    let password = cluster.node("node_a").server().password().to_owned();
    // Refused only once rows are there, because the role loses its right to replicate then.
    let running = cluster.init_spawn(&["--max-rate", "500kB"])?;
    cluster.wait_copying("node_b")?;
    cluster
        .database("node_a")
        .sql("ALTER ROLE keeper NOREPLICATION")?;
    // The right may be granted again, so the job waits, and shows the error without the password.
    wait::until_true("the refusal to be said", CLI_LIMIT, || {
        let waiting = cluster.progress("node_b")?["waiting"]["reason"].to_string();
        Ok(waiting.contains("the subscription cannot be created"))
    })?;
    let waiting = cluster.cli(&["status", "node_b"])?;
    assert!(!waiting.text().contains(&password), "{waiting}");
    cluster
        .database("node_a")
        .sql("ALTER ROLE keeper REPLICATION")?;
    let ended = running.finish(CLI_LIMIT)?.expect(0)?;
    no_password_in_logs(&cluster)?;
    assert!(!format!("{ended:?}").contains(&password), "{ended:?}");
    Ok(())
}

/// Operators of the owner's, found before PostgreSQL's own, that make him a superuser.
const SHADOWS: &str = "
    CREATE SCHEMA shadows AUTHORIZATION app_owner;
    SET ROLE app_owner;
    CREATE TABLE public.kept (id integer PRIMARY KEY);
    CREATE FUNCTION shadows.eq(a text, b text) RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog AS $f$
    BEGIN
        BEGIN ALTER ROLE app_owner SUPERUSER; EXCEPTION WHEN OTHERS THEN NULL; END;
        RETURN a OPERATOR(pg_catalog.=) b;
    END $f$;
    CREATE OPERATOR shadows.= (LEFTARG = text, RIGHTARG = text, FUNCTION = shadows.eq)";

#[test]
fn the_search_path_of_a_hostile_database_gains_its_owner_nothing() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    for database in [&source, &target] {
        database.sql("CREATE ROLE app_owner")?;
        let name = database.name();
        database.sql(&format!(
            "ALTER DATABASE {name} OWNER TO app_owner; ALTER SCHEMA public OWNER TO app_owner"
        ))?;
    }
    source.sql(SHADOWS)?;
    let name = source.name().to_owned();
    // Set by the owner, for all that log in from now on.
    for path in ["shadows, pg_catalog, public", "shadows, public"] {
        source.sql(&format!("ALTER DATABASE {name} SET search_path = {path}"))?;
        let output = cluster.init(&["--force"])?.expect(0)?;
        let rights = "SELECT rolsuper FROM pg_roles WHERE rolname = 'app_owner'";
        for database in [&source, &target] {
            assert_eq!(database.sql(rights)?, "f", "{path}: {}", database.name());
        }
        let set = target.sql("SELECT count(*) FROM pg_db_role_setting WHERE array_to_string(setconfig, ' ') LIKE '%shadows%'")?;
        let refused = path.contains("pg_catalog");
        assert_eq!(set == "0", refused, "{path}");
        assert_eq!(
            output
                .text()
                .contains("names pg_catalog after other schemas"),
            refused,
            "{output}"
        );
        cluster
            .cli(&["detach", "--node", "node_b", "--yes"])?
            .expect(0)?;
        target.sql("DROP TABLE IF EXISTS public.kept; DROP SCHEMA IF EXISTS shadows CASCADE")?;
    }
    Ok(())
}

/// Texts that end elsewhere, and become statements, in a session without `standard_conforming_strings`.
const ENDS_EARLY: &str = r"
    SET ROLE app_owner;
    CREATE TABLE public.quoted (id integer PRIMARY KEY, v text,
        CONSTRAINT ends CHECK (v <> $a$\'::text)); ALTER ROLE app_owner SUPERUSER; --$a$));
    INSERT INTO public.quoted VALUES (1, 'a');
    CREATE INDEX ends_too ON public.quoted (id) WHERE v <> $a$\'::text); ALTER ROLE app_owner SUPERUSER; --$a$";

#[test]
fn texts_in_definitions_end_where_they_should_whatever_the_owner_of_a_database_sets() -> Result<()>
{
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    for database in [&source, &target] {
        database.sql("CREATE ROLE app_owner")?;
        let name = database.name();
        database.sql(&format!(
            "ALTER DATABASE {name} OWNER TO app_owner; ALTER SCHEMA public OWNER TO app_owner"
        ))?;
    }
    source.sql(ENDS_EARLY)?;
    let off = |database: &Database| {
        let name = database.name();
        let off = "SET standard_conforming_strings = off";
        database.sql(&format!("ALTER DATABASE {name} {off}"))
    };
    let gained_nothing = || -> Result<()> {
        let rights = "SELECT rolsuper FROM pg_roles WHERE rolname = 'app_owner'";
        for database in [&source, &target] {
            assert_eq!(database.sql(rights)?, "f", "{}", database.name());
        }
        Ok(())
    };
    off(&target)?;
    cluster.init(&[])?.expect(0)?;
    gained_nothing()?;
    // The setting itself does not go to the target by itself.
    let name = target.name().to_owned();
    target.sql(&format!("ALTER DATABASE {name} RESET ALL"))?;
    off(&source)?;
    cluster
        .cli(&["detach", "--node", "node_b", "--yes"])?
        .expect(0)?;
    target.sql("DROP TABLE public.quoted")?;
    let output = cluster.init(&[])?.expect(0)?;
    gained_nothing()?;
    assert!(
        output.text().contains("standard_conforming_strings"),
        "{output}"
    );
    let set = "SELECT count(*) FROM pg_db_role_setting";
    assert_eq!(target.sql(set)?, "0");
    compare::rows(&source, &target)?.none()
}

#[test]
fn a_table_that_may_not_be_read_costs_itself_and_a_repair_names_the_rights_that_it_lacks()
-> Result<()> {
    let Some(mut cluster) = owned_databases()? else {
        return Ok(());
    };
    grant(&cluster)?;
    start_agents(&mut cluster)?;
    cluster.init(&[])?.expect(0)?;
    let target = cluster.database("node_b");
    target.sql("REVOKE SELECT ON shop.customer FROM keeper")?;
    let verify = ["verify", "node_a", "node_b", "--json"];
    let unread = cluster.cli(&verify)?.expect(1)?;
    assert!(
        unread.stderr.contains("not read: shop.customer"),
        "{unread}"
    );
    let fix = r#"GRANT SELECT ON "shop"."customer" TO "keeper""#;
    assert!(unread.stderr.contains(fix), "{unread}");
    let report = unread.objects().remove(0);
    let table = |at: usize| &report["tables"][at];
    assert_eq!(table(0)["problem"], "unreadable", "{report}");
    assert_eq!(table(1)["equal"], true, "{report}");
    target.sql("DELETE FROM shop.sale WHERE id = 7")?;
    cluster.cli(&verify)?.expect(3)?;
    target.sql("GRANT SELECT ON shop.customer TO keeper")?;

    let repair = ["repair", "node_a", "node_b", "--yes"];
    let refused = cluster.cli(&repair)?.expect(6)?;
    let fix = "GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text)";
    assert!(refused.stderr.contains(fix), "{refused}");
    target.sql(
        "GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_session_setup(text),
             pg_replication_origin_session_reset(), pg_replication_origin_drop(text) TO keeper;
         REVOKE DELETE ON shop.sale FROM keeper; INSERT INTO shop.sale VALUES (-1)",
    )?;
    let refused = cluster.cli(&repair)?.expect(3)?;
    let denied = "permission denied for table sale";
    assert!(refused.stdout.contains(denied), "{refused}");
    target.sql("GRANT DELETE ON shop.sale TO keeper")?;
    cluster.cli(&repair)?.expect(0)?;
    Ok(())
}

#[test]
fn what_runs_with_the_rights_of_an_owner_who_is_missing_gains_none() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(
        r#"CREATE TABLE t (id integer PRIMARY KEY);
         CREATE ROLE gone; GRANT CREATE ON SCHEMA public TO gone; SET ROLE gone;
         CREATE FUNCTION public.who(a integer, "b OWNER TO c" text) RETURNS text SECURITY DEFINER
             LANGUAGE sql AS 'SELECT current_user::text';
         CREATE PROCEDURE public.act() SECURITY DEFINER LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION public.plain() RETURNS text LANGUAGE sql AS 'SELECT current_user::text';
         CREATE VIEW public.secrets AS SELECT rolpassword FROM pg_catalog.pg_authid;
         GRANT SELECT ON public.secrets TO PUBLIC;"#,
    )?;
    cluster.init(&[])?.expect(0)?;
    let definers =
        "SELECT count(*) FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace";
    let options = "SELECT reloptions FROM pg_class WHERE oid = 'public.secrets'::regclass";
    assert_eq!(target.sql(definers)?, "0");
    assert_eq!(
        target.sql("SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE proname = 'who'")?,
        "postgres"
    );
    if target.value::<u32>("SHOW server_version_num")? >= 150_000 {
        assert_eq!(target.sql(options)?, "{security_invoker=true}");
        target.sql("CREATE ROLE reader")?;
        let read = target.sql("SET ROLE reader; SELECT count(*) FROM public.secrets");
        assert!(read.is_err(), "{read:?}");
    }
    // It is whole once the owner is there.
    target.sql("CREATE ROLE gone; GRANT CREATE ON SCHEMA public TO gone")?;
    cluster
        .cli(&["init", "rebuild", "--node", "node_b"])?
        .expect(0)?;
    assert_eq!(target.sql(definers)?, "2");
    assert_eq!(target.sql(options)?, "");
    compare::schema(&source, &target)?.none()
}
