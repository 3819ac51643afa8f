use super::*;
use proptest::prelude::*;

fn table(schema: &str, table: &str) -> TableName {
    TableName::new(schema, table).unwrap()
}

#[test]
fn indexes_and_keys_know_their_table() {
    let index = |t, n: &str| Class::Index {
        table: t,
        name: n.to_owned(),
    };
    assert_eq!(
        classify("CREATE INDEX i ON public.t USING btree (a)"),
        index(table("public", "t"), "i")
    );
    assert_eq!(
        classify("CREATE UNIQUE INDEX \"I \"\"x\" ON ONLY \"S.p\".\"T\" USING gist (a)"),
        index(table("S.p", "T"), "I \"x")
    );
    for key in [
        "PRIMARY KEY (a)",
        "UNIQUE (a)",
        "EXCLUDE USING gist (a WITH &&)",
    ] {
        assert_eq!(
            classify(&format!(
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT k {key}"
            )),
            Class::Key {
                table: table("public", "t"),
                name: "k".to_owned()
            }
        );
    }
}

#[test]
fn foreign_keys_of_partitioned_tables_are_told_apart() {
    let foreign = |only| Class::ForeignKey {
        table: table("public", "t"),
        name: Identifier::parse("f k").unwrap(),
        only,
    };
    let tail = "public.t ADD CONSTRAINT \"f k\" FOREIGN KEY (a) REFERENCES public.o(a)";
    assert_eq!(
        classify(&format!("ALTER TABLE ONLY {tail}")),
        foreign(Only::Yes)
    );
    assert_eq!(classify(&format!("ALTER TABLE {tail}")), foreign(Only::No));
}

#[test]
fn the_rest_falls_into_its_stage() {
    let stage = |sql: &str| classify(sql).stage();
    let details = Some(Stage::IndexDetails);
    assert_eq!(stage("ALTER INDEX a.b ATTACH PARTITION a.c"), details);
    assert_eq!(
        stage("ALTER TABLE ONLY a.b REPLICA IDENTITY USING INDEX c"),
        details
    );
    assert_eq!(stage("ALTER TABLE a.b CLUSTER ON c"), details);
    assert_eq!(stage("CREATE STATISTICS a.s ON x, y FROM a.b"), details);
    assert_eq!(stage("REFRESH MATERIALIZED VIEW a.b"), Some(Stage::Refresh));
    assert_eq!(stage("SET default_tablespace = ''"), None);
    assert_eq!(stage("CREATE PUBLICATION p FOR ALL TABLES"), None);
    assert_eq!(stage("ALTER PUBLICATION p ADD TABLE ONLY a.b"), None);
    for rest in [
        "CREATE TRIGGER x BEFORE INSERT ON a.b FOR EACH ROW EXECUTE FUNCTION f()",
        "ALTER TABLE a.b ENABLE ROW LEVEL SECURITY",
        "COMMENT ON INDEX a.b IS 'SET x'",
        "ALTER TABLE a.b ADD CONSTRAINT c CHECK ((a > 0)) NOT VALID",
        "GRANT SELECT ON a.b TO r",
    ] {
        assert_eq!(stage(rest), Some(Stage::Rest), "{rest}");
    }
}

#[test]
fn policies_and_event_triggers_have_stages_of_their_own() {
    for sql in [
        "CREATE POLICY \"p q\" ON a.b AS RESTRICTIVE USING (true)",
        "COMMENT ON POLICY p ON a.b IS 'x'",
    ] {
        assert_eq!(classify(sql).stage(), Some(Stage::Policies), "{sql}");
    }
    for sql in [
        "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION f()",
        "ALTER EVENT TRIGGER e OWNER TO bob",
        "ALTER EVENT TRIGGER e DISABLE",
        "COMMENT ON EVENT TRIGGER e IS 'x'",
    ] {
        assert_eq!(classify(sql).stage(), Some(Stage::EventTriggers), "{sql}");
    }
}

#[test]
fn what_rows_and_replication_need_is_told_apart() {
    let t = || table("a", "b");
    for (sql, class) in [
        (
            "CREATE TABLE a.b (\n x integer)",
            Class::Table { table: t() },
        ),
        ("CREATE UNLOGGED TABLE a.b ()", Class::Table { table: t() }),
        (
            "CREATE FOREIGN TABLE a.b () SERVER s",
            Class::Table { table: t() },
        ),
        (
            "ALTER TABLE ONLY a.b ATTACH PARTITION a.c DEFAULT",
            Class::Attach,
        ),
        (
            "ALTER TABLE a.b ENABLE ROW LEVEL SECURITY",
            Class::RowSecurity,
        ),
        (
            "ALTER TABLE ONLY a.b FORCE ROW LEVEL SECURITY",
            Class::RowSecurity,
        ),
        (
            "ALTER TABLE ONLY a.b REPLICA IDENTITY USING INDEX \"I\"",
            Class::Identity {
                table: t(),
                index: "I".to_owned(),
            },
        ),
    ] {
        assert_eq!(classify(sql), class, "{sql}");
    }
    assert!(is_primary_key(
        "ALTER TABLE ONLY a.b\n    ADD CONSTRAINT k PRIMARY KEY (x)"
    ));
    assert!(!is_primary_key(
        "ALTER TABLE ONLY a.b ADD CONSTRAINT k UNIQUE (x)"
    ));
}

#[test]
fn owners_are_privileges_whatever_the_object() {
    for sql in [
        "ALTER TABLE public.t OWNER TO \"Some One\"",
        "ALTER FUNCTION public.f(a integer, b text) OWNER TO x",
        "ALTER SCHEMA s OWNER TO x",
        "ALTER DEFAULT PRIVILEGES FOR ROLE x IN SCHEMA s GRANT ALL ON TABLES TO y",
    ] {
        assert_eq!(classify(sql), Class::Privilege, "{sql}");
    }
    let long = format!(
        "ALTER FUNCTION a.f({}) OWNER TO \"Some One\"",
        "a integer, ".repeat(40)
    );
    assert_eq!(classify(&long), Class::Privilege);
    assert_eq!(role(&long).as_deref(), Some("Some One"));
    assert_eq!(
        role("GRANT SELECT ON TABLE a.b TO x WITH GRANT OPTION").as_deref(),
        Some("x")
    );
    assert_eq!(
        role("REVOKE ALL ON TABLE a.b FROM PUBLIC").as_deref(),
        Some("public")
    );
    assert_eq!(
        classify("SELECT pg_catalog.set_config('search_path', '', false)"),
        Class::Setting {
            name: String::new()
        }
    );
}

proptest! {
    #[test]
    fn any_text_has_a_class(text: String) {
        let _ = (classify(&text), headline(&text));
    }
}
