use super::*;
use proptest::prelude::*;

fn split_in(text: &[u8], piece: usize) -> Result<Vec<String>, SplitError> {
    let mut splitter = Splitter::default();
    let mut found = Vec::new();
    for bytes in text.chunks(piece.max(1)) {
        splitter.push(bytes);
        while let Some(statement) = splitter.next()? {
            found.push(statement);
        }
    }
    found.extend(splitter.finish()?);
    Ok(found)
}

fn split(text: &str) -> Vec<String> {
    let whole = split_in(text.as_bytes(), text.len()).unwrap();
    let bytewise = split_in(text.as_bytes(), 1).unwrap();
    assert_eq!(whole, bytewise, "pieces change nothing");
    whole
}

#[test]
fn semicolons_inside_quotes_comments_and_parentheses_do_not_cut() {
    let text = r#"
-- a comment; with 'quotes
\restrict abc;def
SET a = 'x;y''z;';
SELECT E'it\'s; \\';
SELECT 'back\';
/* outer; /* inner; */ still; */
COMMENT ON TABLE "we;ird""n;ame" IS 'ü;';
CREATE RULE r AS ON INSERT TO t DO (INSERT INTO a VALUES (1); INSERT INTO b VALUES (2));
CREATE FUNCTION f() RETURNS text AS $_$ select $$;$$; $_ ; $_$ LANGUAGE sql;
CREATE FUNCTION g() RETURNS text AS $$ ; $a$ ; $$ LANGUAGE sql;
SELECT a$b$ FROM t; SELECT $1;
\unrestrict abc
"#;
    assert_eq!(
        split(text),
        [
            r"SET a = 'x;y''z;'",
            r"SELECT E'it\'s; \\'",
            r"SELECT 'back\'",
            r#"COMMENT ON TABLE "we;ird""n;ame" IS 'ü;'"#,
            "CREATE RULE r AS ON INSERT TO t DO (INSERT INTO a VALUES (1); INSERT INTO b VALUES (2))",
            "CREATE FUNCTION f() RETURNS text AS $_$ select $$;$$; $_ ; $_$ LANGUAGE sql",
            "CREATE FUNCTION g() RETURNS text AS $$ ; $a$ ; $$ LANGUAGE sql",
            "SELECT a$b$ FROM t",
            "SELECT $1",
        ]
    );
}

#[test]
fn a_standard_body_ends_with_its_own_end() {
    let body = "CREATE OR REPLACE FUNCTION s.f(a int DEFAULT 1) RETURNS int\n LANGUAGE sql\n BEGIN ATOMIC\n SELECT CASE WHEN (a > 1) THEN CASE a WHEN 2 THEN 1 END ELSE 2 END;\n SELECT \"end\", 'END';\nEND";
    let text = format!("{body};\nCREATE PROCEDURE p() BEGIN ATOMIC END;\nSELECT 1;");
    assert_eq!(
        split(&text),
        [body, "CREATE PROCEDURE p() BEGIN ATOMIC END", "SELECT 1"]
    );
}

#[test]
fn begin_is_only_a_body_in_a_routine() {
    assert_eq!(
        split("CREATE TABLE t (begin int, atomic int); SELECT begin atomic; SELECT 2"),
        [
            "CREATE TABLE t (begin int, atomic int)",
            "SELECT begin atomic",
            "SELECT 2"
        ]
    );
    assert_eq!(split("CREATE FUNCTION begin() AS 'x'; SELECT 2").len(), 2);
}

#[test]
fn a_name_is_no_keyword_wherever_it_stands() {
    for head in [
        "CREATE FUNCTION public.begin(atomic integer) RETURNS integer LANGUAGE sql AS 'x'",
        "CREATE FUNCTION public.f(begin integer, atomic integer) RETURNS integer AS 'x'",
        "CREATE FUNCTION begin(atomic integer) RETURNS public.begin\n    LANGUAGE sql AS 'x'",
        "CREATE FUNCTION public.f() RETURNS public.begin atomic AS 'x'",
        "CREATE FUNCTION begin.atomic() RETURNS begin.atomic AS 'x'",
        "CREATE PROCEDURE public.p() SET begin.atomic TO 'x' AS 'y'",
        "CREATE FUNCTION public.f() SET a TO begin, atomic AS 'y'",
        "CREATE FUNCTION public.f() SET a TO begin \"x\" atomic AS 'y'",
        "CREATE FUNCTION public.f() SET a TO begin - atomic AS 'y'",
        "CREATE PROCEDURE public.\"BEGIN\"(OUT \"end\" integer) AS 'begin atomic'",
    ] {
        assert_eq!(split(&format!("{head};\nSELECT 1;")), [head, "SELECT 1"]);
    }
    for body in [
        "CREATE FUNCTION public.begin(atomic integer) RETURNS public.begin\n BEGIN ATOMIC\n SELECT public.\"end\"(1);\nEND",
        "CREATE FUNCTION public.f() RETURNS begin BEGIN ATOMIC SELECT t.\"case\" FROM s.end t; END",
        "CREATE PROCEDURE p() BEGIN ATOMIC SELECT 1; SELECT (CASE WHEN (CASE 1 WHEN 2 THEN 3 END) THEN 1 END); END",
    ] {
        assert_eq!(split(&format!("{body};\nSELECT 1;")), [body, "SELECT 1"]);
    }
    assert_eq!(
        split("CREATE FUNCTION f() BEGIN /* ; */ ATOMIC SELECT 1; END; SELECT 2").len(),
        2
    );
}

#[test]
fn strings_follow_the_syntax_the_dump_announces() {
    let text = r"SET standard_conforming_strings = off; SELECT 'a\';b'; SET standard_conforming_strings = on; SELECT 'a\'; SELECT 2";
    assert_eq!(split(text).len(), 5);
    assert_eq!(split("SELECT E'a'\n'b\\';c'; SELECT 2").len(), 2);
    assert_eq!(split("SELECT E'a''\\';c'; SELECT 2").len(), 2);
    // A blank without a line break ends the string; the next one is its own.
    assert_eq!(split("SELECT E'a' '\\'; SELECT 2").len(), 2);
}

#[test]
fn what_ends_midway_is_an_error() {
    for (text, inside) in [
        ("SELECT 'a", "a string"),
        ("SELECT \"a", "a quoted name"),
        ("SELECT $$ a $ $", "a dollar-quoted string"),
        ("/* /* */", "a comment"),
        ("SELECT (1;", "parentheses"),
        (
            "CREATE FUNCTION f() BEGIN ATOMIC SELECT 1;",
            "a function body",
        ),
    ] {
        let outcome = split_in(text.as_bytes(), 3);
        assert_eq!(outcome, Err(SplitError::Unfinished(inside)), "{text}");
    }
    assert_eq!(split_in(b"SELECT '\xff';", 2), Err(SplitError::NotUtf8));
}

#[test]
fn a_statement_is_bounded() {
    let mut splitter = Splitter::with_limit(100);
    splitter.push(b"SELECT '");
    splitter.push(&[b'x'; 200]);
    assert_eq!(splitter.next(), Err(SplitError::TooLong { limit: 100 }));
    // Comments and psql's lines are dropped as they come, whatever their length.
    let mut splitter = Splitter::with_limit(100);
    splitter.push(format!("--{0}\n\\{0}\n/*{0}*/SELECT 1;", "x".repeat(500)).as_bytes());
    assert_eq!(splitter.next(), Ok(Some("SELECT 1".to_owned())));
}

fn literal() -> impl Strategy<Value = String> {
    let text = proptest::collection::vec(
        prop_oneof![
            Just(";"),
            Just("'"),
            Just("\""),
            Just("\\"),
            Just("$"),
            Just("$$"),
            Just("--"),
            Just("/*"),
            Just("*/"),
            Just("\n"),
            Just("e"),
            Just("BEGIN ATOMIC "),
            Just("END"),
            Just("é"),
            Just("("),
            Just(")")
        ],
        0..12,
    )
    .prop_map(|parts| parts.concat());
    (text, 0..4u8).prop_map(|(text, how)| match how {
        0 => format!("'{}'", text.replace('\'', "''")),
        1 => format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
        2 => format!("\"x{}\"", text.replace('"', "\"\"")),
        _ => format!("$q1$ {text} $q1$"),
    })
}

/// Names as pg_dump writes them: reserved words in quotes, others bare.
fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("begin"),
        Just("atomic"),
        Just("\"end\""),
        Just("\"case\""),
        Just("\"be;gin\"\" atomic\""),
        Just("\"(\""),
        Just("f"),
    ]
}

/// A routine with a body of statements, or one in a string.
fn routine() -> impl Strategy<Value = String> {
    let case = (0..4usize).prop_map(|depth| {
        (0..depth).fold("1".to_owned(), |inner, _| {
            format!("CASE WHEN (x > {inner}) THEN {inner} ELSE 2 END")
        })
    });
    let statements = proptest::collection::vec((case, name()), 0..3);
    let args = proptest::collection::vec((name(), name()), 0..3);
    (name(), name(), args, statements, 0..3u8).prop_map(|(schema, own, args, inner, how)| {
        let args: Vec<String> = args
            .iter()
            .map(|(a, t)| format!("{a} {schema}.{t}"))
            .collect();
        let head = format!(
            "CREATE FUNCTION {schema}.{own}({}) RETURNS {schema}.{own}",
            args.join(", ")
        );
        let body: String = inner
            .iter()
            .map(|(case, name)| format!(" SELECT {case} AS \"x\", {schema}.{name};\n"))
            .collect();
        match how {
            0 => format!("{head}\n    LANGUAGE sql\n    BEGIN ATOMIC\n{body}END"),
            1 => format!("{head} LANGUAGE sql AS $_$ BEGIN ATOMIC {body} $_$"),
            _ => format!(
                "{head} LANGUAGE sql SET {schema}.{own} TO 'begin' RETURN CASE 1 WHEN 2 THEN 3 END"
            ),
        }
    })
}

proptest! {
    #[test]
    fn routines_end_where_they_end(routines in proptest::collection::vec(routine(), 1..5)) {
        let text = routines.join(";\n\n--\n-- Name: begin atomic;\n--\n\n");
        prop_assert_eq!(split(&text), routines);
    }

    #[test]
    fn any_bytes_are_statements_or_an_error_and_pieces_change_nothing(
        bytes in proptest::collection::vec(any::<u8>(), 0..300), piece in 1..40usize
    ) {
        prop_assert_eq!(split_in(&bytes, piece), split_in(&bytes, 1));
    }

    #[test]
    fn hostile_literals_never_leak(literals in proptest::collection::vec(literal(), 1..8)) {
        let statements: Vec<String> =
            literals.iter().map(|l| format!("SELECT {l} , (1) AS c")).collect();
        let text = statements.join(";\n-- it's\n");
        prop_assert_eq!(split(&text), statements);
    }
}
