//! What a statement of a schema dump is about, for display: kind and name. Pure.

use crate::schema::statement::headline;

/// As statements name them; longer ones before their own prefixes.
const KINDS: [&str; 41] = [
    "ACCESS METHOD",
    "AGGREGATE",
    "CAST",
    "COLLATION",
    "COLUMN",
    "CONSTRAINT",
    "CONVERSION",
    "DATABASE",
    "DOMAIN",
    "EVENT TRIGGER",
    "EXTENSION",
    "FOREIGN DATA WRAPPER",
    "FOREIGN TABLE",
    "FUNCTION",
    "INDEX",
    "LANGUAGE",
    "LARGE OBJECT",
    "MATERIALIZED VIEW",
    "OPERATOR CLASS",
    "OPERATOR FAMILY",
    "OPERATOR",
    "POLICY",
    "PROCEDURE",
    "ROUTINE",
    "RULE",
    "SCHEMA",
    "SEQUENCE",
    "SERVER",
    "STATISTICS",
    "TABLE",
    "TEXT SEARCH CONFIGURATION",
    "TEXT SEARCH DICTIONARY",
    "TEXT SEARCH PARSER",
    "TEXT SEARCH TEMPLATE",
    "TRANSFORM",
    "TRIGGER",
    "TYPE",
    "USER MAPPING",
    "VIEW",
    "DEFAULT PRIVILEGES",
    "PUBLICATION",
];

/// Words that may stand between CREATE or ALTER and the kind.
const FILLERS: [&str; 10] = [
    "OR",
    "REPLACE",
    "UNIQUE",
    "UNLOGGED",
    "TRUSTED",
    "PROCEDURAL",
    "DEFAULT",
    "RECURSIVE",
    "CONSTRAINT",
    "TEMPORARY",
];

/// Words between the kind and the name.
const NOISE: [&str; 5] = ["IF", "NOT", "EXISTS", "ONLY", "CONCURRENTLY"];

/// An object, as far as a statement names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    /// In lower case: `index`, `foreign key`, `comment on view`.
    pub(crate) kind: String,
    /// The name as written, with its table where there is one.
    pub(crate) object: String,
}

impl Label {
    pub(crate) fn of(sql: &str) -> Self {
        let sql = skip_settings(sql);
        read(sql).unwrap_or_else(|| Self::new("statement", first_words(sql)))
    }

    fn new(kind: impl Into<String>, object: String) -> Self {
        let kind = kind.into();
        Self { kind, object }
    }
}

/// For an unknown kind, only what the statement does: the rest may be rows.
fn first_words(sql: &str) -> String {
    sql.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// Skips statements that only set something for the next ones.
fn skip_settings(sql: &str) -> &str {
    let mut rest = sql.trim_start();
    while rest.starts_with("SET LOCAL ") {
        match rest.split_once(";\n") {
            Some((_, after)) => rest = after.trim_start(),
            None => break,
        }
    }
    rest
}

fn read(sql: &str) -> Option<Label> {
    let (verb, rest) = word(sql)?;
    match verb.to_ascii_uppercase().as_str() {
        "CREATE" => created(rest),
        "ALTER" => altered(rest),
        "COMMENT" => said(rest, "comment on"),
        "SECURITY" => {
            let rest = &rest[rest.find(" ON ")?..];
            said(rest, "security label on")
        }
        "INSERT" => {
            let into = rest.trim_start().strip_prefix("INTO ")?;
            Some(Label::new("rows", name(into)))
        }
        "REFRESH" => {
            let (kind, rest) = kind(rest)?;
            let kind = format!("contents of {kind}");
            Some(Label::new(kind, name(rest.trim_start())))
        }
        verb @ ("GRANT" | "REVOKE") => {
            let object = headline(&format!("{verb} {rest}"));
            Some(Label::new("privilege", object))
        }
        _ => None,
    }
}

fn created(mut rest: &str) -> Option<Label> {
    // A constraint trigger is a trigger.
    while let Some((first, after)) = word(rest)
        && FILLERS.contains(&first.to_ascii_uppercase().as_str())
    {
        rest = after;
    }
    let (kind, after) = kind(rest)?;
    let after = noise(after);
    let mut object = match kind.as_str() {
        // Indexes and statistics are named without schema, casts and mappings not at all.
        "cast" | "transform" | "user mapping" => headline(after),
        _ => name(after),
    };
    if ["index", "trigger", "policy", "rule"].contains(&kind.as_str())
        && let Some(table) = table_after_on(after.get(object.len()..).unwrap_or_default())
    {
        object = format!("{object} on {table}");
    }
    Some(Label { kind, object })
}

fn altered(rest: &str) -> Option<Label> {
    if rest.trim_start().starts_with("DEFAULT PRIVILEGES") {
        return Some(Label::new("default privileges", headline(rest)));
    }
    let (kind, after) = kind(rest)?;
    let after = noise(after);
    let object = name(after);
    let what = after.get(object.len()..).unwrap_or_default().trim_start();
    if let Some(constraint) = what.strip_prefix("ADD CONSTRAINT ") {
        let own = name(constraint);
        let kind = match constraint.get(own.len()..).unwrap_or_default().trim_start() {
            text if text.starts_with("FOREIGN KEY") => "foreign key",
            text if text.starts_with("PRIMARY KEY") => "primary key",
            _ => "constraint",
        };
        return Some(Label::new(kind, format!("{own} on {object}")));
    }
    if let Some(constraint) = what.strip_prefix("VALIDATE CONSTRAINT ") {
        let object = format!("{} on {object}", name(constraint));
        return Some(Label::new("validated constraint", object));
    }
    let kind = match what.contains(" OWNER TO ") || what.starts_with("OWNER TO ") {
        true => format!("owner of {kind}"),
        false => format!("alteration of {kind}"),
    };
    Some(Label { kind, object })
}

/// `ON KIND name IS …`.
fn said(rest: &str, how: &str) -> Option<Label> {
    let rest = rest.trim_start().strip_prefix("ON ")?;
    let (kind, after) = kind(rest)?;
    let end = after.find(" IS ").unwrap_or(after.len());
    let object = headline(after[..end].trim());
    Some(Label::new(format!("{how} {kind}"), object))
}

fn kind(rest: &str) -> Option<(String, &str)> {
    let rest = rest.trim_start();
    KINDS.iter().find_map(|kind| {
        let after = rest.get(kind.len()..)?;
        let fits = rest.is_char_boundary(kind.len())
            && rest[..kind.len()].eq_ignore_ascii_case(kind)
            && after.starts_with(char::is_whitespace);
        fits.then(|| (kind.to_lowercase(), after))
    })
}

fn noise(mut rest: &str) -> &str {
    while let Some((first, after)) = word(rest) {
        if !NOISE.contains(&first) {
            break;
        }
        rest = after;
    }
    rest.trim_start()
}

fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (end > 0).then(|| (&text[..end], &text[end..]))
}

/// The name at the start of `text`: parts, quoted or not, with dots, and a routine's arguments.
fn name(text: &str) -> String {
    let mut quoted = false;
    let mut depth = 0_u32;
    let end = text.char_indices().find(|(_, c)| {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        !quoted && depth == 0 && (c.is_whitespace() || *c == ';')
    });
    headline(&text[..end.map_or(text.len(), |(at, _)| at)])
}

/// The table after the first `ON` or `TO` outside quotes.
fn table_after_on(text: &str) -> Option<String> {
    let at = text.find(" ON ")?;
    let rest = text[at + 4..].trim_start();
    let rest = rest.strip_prefix("ONLY ").unwrap_or(rest);
    Some(name(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_could_not_be_made_is_called_by_its_name() {
        for (sql, kind, object) in [
            (
                "CREATE UNIQUE INDEX i ON public.t USING btree (a)",
                "index",
                "i on public.t",
            ),
            (
                "SET LOCAL default_tablespace = x;\nCREATE INDEX \"I x\" ON ONLY s.\"t t\" USING btree (a)",
                "index",
                "\"I x\" on s.\"t t\"",
            ),
            (
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES public.o(a)",
                "foreign key",
                "k on public.t",
            ),
            (
                "ALTER TABLE ONLY public.t ADD CONSTRAINT k UNIQUE (a)",
                "constraint",
                "k on public.t",
            ),
            ("CREATE VIEW public.v AS\n SELECT 1", "view", "public.v"),
            (
                "CREATE OR REPLACE FUNCTION public.f(a integer, b text) RETURNS integer",
                "function",
                "public.f(a integer, b text)",
            ),
            (
                "CREATE TRIGGER x BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION f()",
                "trigger",
                "x on public.t",
            ),
            (
                "CREATE CONSTRAINT TRIGGER x AFTER INSERT ON public.t",
                "trigger",
                "x on public.t",
            ),
            (
                "COMMENT ON VIEW public.v IS 'x IS y'",
                "comment on view",
                "public.v",
            ),
            (
                "SECURITY LABEL FOR anon ON FUNCTION public.f(t text) IS 'TRUSTED'",
                "security label on function",
                "public.f(t text)",
            ),
            (
                "ALTER VIEW public.v OWNER TO bob",
                "owner of view",
                "public.v",
            ),
            (
                "ALTER INDEX a.p ATTACH PARTITION a.c",
                "alteration of index",
                "a.p",
            ),
            (
                "REFRESH MATERIALIZED VIEW a.m",
                "contents of materialized view",
                "a.m",
            ),
            ("CREATE TRUSTED PROCEDURAL LANGUAGE plx", "language", "plx"),
            (
                "INSERT INTO ext.conf VALUES\n\t(1, 'x')",
                "rows",
                "ext.conf",
            ),
            ("VACUUM (FULL) t", "statement", "VACUUM (FULL)"),
        ] {
            let label = Label::of(sql);
            assert_eq!(
                (label.kind.as_str(), label.object.as_str()),
                (kind, object),
                "{sql}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_label(text in "(CREATE|ALTER|COMMENT ON|SECURITY LABEL|GRANT)? ?(INDEX|TABLE|VIEW)? ?.{0,40}") {
            let _ = Label::of(&text);
        }
    }
}
