//! What a statement of a schema dump is, as far as its place in a job depends on it. Pure.
//!
//! Reads only the first tokens of a statement in the forms pg_dump writes; what it does not know is
//! [`Class::Other`], which is run in order and never dropped.

use steep_protocol::{Identifier, TableName};

/// The stage of a job that runs a deferred statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    /// Indexes and the constraints that are indexes: in parallel, once the rows are there.
    Indexes,
    /// Indexes of partitioned tables themselves, which hold nothing: one by one, since making one may
    /// lock every partition.
    Parents,
    /// What is said about indexes: attached, clustered on, replica identity, statistics. In order.
    IndexDetails,
    /// Foreign keys: added without a check, then checked in parallel.
    ForeignKeys,
    /// Triggers, rules, comments, privileges and the rest. In order.
    Rest,
    /// CHECK constraints and those of domains that rows might not have passed while they were loaded.
    Checks,
    /// Policies, all of a table at once, and what is said about them. In order.
    Policies,
    /// Materialised views, which read the rows. In order, at the very end.
    Refresh,
    /// Event triggers, after everything that they could fire at. In order.
    EventTriggers,
}

impl Stage {
    /// As it is stored; says nothing about order.
    pub(crate) fn code(self) -> i16 {
        match self {
            Self::Indexes => 1,
            Self::Parents => 6,
            Self::IndexDetails => 2,
            Self::ForeignKeys => 3,
            Self::Rest => 4,
            Self::Refresh => 5,
            Self::Policies => 7,
            Self::EventTriggers => 8,
            Self::Checks => 9,
        }
    }
}

/// What a statement does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Class {
    /// `SET` and the dump's `set_config`: session settings.
    Setting {
        /// The setting's name; empty for `set_config`.
        name: String,
    },
    /// `CREATE [UNIQUE] INDEX`.
    Index {
        /// On which table.
        table: TableName,
        /// The index.
        name: String,
    },
    /// A primary key, unique or exclusion constraint.
    Key {
        /// On which table.
        table: TableName,
        /// The constraint.
        name: String,
    },
    /// A foreign key.
    ForeignKey {
        /// On which table.
        table: TableName,
        /// The constraint.
        name: Identifier,
        /// `ALTER TABLE ONLY`, which pg_dump writes for every table that is not partitioned.
        only: Only,
    },
    /// Something about an index that exists by then.
    IndexDetail,
    /// `REPLICA IDENTITY USING INDEX`.
    Identity {
        /// Of which table.
        table: TableName,
        /// The index.
        index: String,
    },
    /// `CREATE TABLE` of any kind.
    Table {
        /// The table.
        table: TableName,
    },
    /// `ATTACH PARTITION` of a table.
    Attach,
    /// Row security of a table, switched on or forced.
    RowSecurity,
    /// `CREATE POLICY`.
    Policy {
        /// On which table.
        table: TableName,
    },
    /// What is said about a policy.
    PolicyDetail,
    /// An event trigger, or something about one.
    EventTrigger,
    /// Owner, privilege or role: may name a role that this server does not have.
    Privilege,
    /// `COMMENT`.
    Comment,
    /// `CREATE SCHEMA`.
    Schema,
    /// `CREATE EXTENSION`.
    Extension,
    /// A publication or subscription, which a copy must not take over.
    Replication,
    /// `REFRESH MATERIALIZED VIEW`.
    Refresh {
        /// The view, where its name is understood.
        view: Option<TableName>,
    },
    /// `CREATE MATERIALIZED VIEW`: in the post-data section where it needs a primary key.
    MaterializedView {
        /// The view.
        view: TableName,
    },
    /// Anything else.
    Other,
}

/// Whether an `ALTER TABLE` says `ONLY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Only {
    /// It does.
    Yes,
    /// It does not.
    No,
}

impl Class {
    /// When a statement of the post-data section runs; nothing where it never does.
    pub(crate) fn stage(&self) -> Option<Stage> {
        match self {
            Self::Setting { .. } | Self::Replication => None,
            Self::Index { .. } | Self::Key { .. } => Some(Stage::Indexes),
            Self::IndexDetail | Self::Identity { .. } => Some(Stage::IndexDetails),
            Self::ForeignKey { .. } => Some(Stage::ForeignKeys),
            Self::Refresh { .. } => Some(Stage::Refresh),
            Self::Policy { .. } | Self::PolicyDetail => Some(Stage::Policies),
            Self::EventTrigger => Some(Stage::EventTriggers),
            Self::Table { .. }
            | Self::Attach
            | Self::RowSecurity
            | Self::Privilege
            | Self::Comment
            | Self::Schema
            | Self::Extension
            | Self::MaterializedView { .. }
            | Self::Other => Some(Stage::Rest),
        }
    }
}

/// A token: words fold to upper case, quoted names are taken apart, the rest is single characters.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// An unquoted word, as written.
    Word(String),
    /// A `"quoted"` name, unquoted.
    Name(String),
    /// A character of its own.
    Mark(char),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(w) if w.eq_ignore_ascii_case(word))
    }
}

/// Tokens enough to recognise any form of pg_dump's: names have at most two parts.
const TOKENS_MAX: usize = 24;

fn tokens(statement: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = statement.trim_start();
    while found.len() < TOKENS_MAX {
        let Some(first) = rest.chars().next() else {
            break;
        };
        let taken;
        if first == '"' {
            let (name, length) = quoted(rest);
            found.push(Token::Name(name));
            taken = length;
        } else if first.is_alphanumeric() || first == '_' {
            taken = rest
                .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
                .unwrap_or(rest.len());
            found.push(Token::Word(rest[..taken].to_owned()));
        } else if first == '\'' || first == '$' {
            // No form looks behind a string.
            break;
        } else {
            taken = first.len_utf8();
            found.push(Token::Mark(first));
        }
        rest = rest[taken..].trim_start();
    }
    found
}

/// The name at the head of `text`, which begins with a quote, and its length there.
fn quoted(text: &str) -> (String, usize) {
    let mut name = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c != '"' {
            name.push(c);
        } else if chars.peek().is_some_and(|(_, next)| *next == '"') {
            name.push('"');
            chars.next();
        } else {
            return (name, at + 1);
        }
    }
    (name, text.len())
}

/// Reads tokens one after the other.
struct Cursor<'a>(&'a [Token]);

impl Cursor<'_> {
    /// Takes the words if they come next.
    fn take(&mut self, words: &[&str]) -> bool {
        let fits = self.0.len() >= words.len()
            && self.0.iter().zip(words).all(|(token, word)| token.is(word));
        if fits {
            self.0 = &self.0[words.len()..];
        }
        fits
    }

    fn name(&mut self) -> Option<String> {
        let (first, rest) = self.0.split_first()?;
        let name = match first {
            Token::Word(word) => word.to_lowercase(),
            Token::Name(name) => name.clone(),
            Token::Mark(_) => return None,
        };
        self.0 = rest;
        Some(name)
    }

    fn mark(&mut self, mark: char) -> bool {
        let fits = self.0.first() == Some(&Token::Mark(mark));
        if fits {
            self.0 = &self.0[1..];
        }
        fits
    }

    /// `schema.table`: pg_dump qualifies every name.
    fn table(&mut self) -> Option<TableName> {
        let schema = self.name()?;
        if !self.mark('.') {
            return None;
        }
        TableName::new(schema, self.name()?).ok()
    }
}

/// What `statement` does.
pub(crate) fn classify(statement: &str) -> Class {
    let tokens = tokens(statement);
    let mut at = Cursor(&tokens);
    if at.take(&["SET"]) {
        let name = at.name().unwrap_or_default();
        return Class::Setting { name };
    }
    if at.take(&["SELECT", "pg_catalog"]) && at.mark('.') && at.take(&["set_config"]) {
        return Class::Setting {
            name: String::new(),
        };
    }
    if at.take(&["COMMENT", "ON"]) {
        return match () {
            () if at.take(&["POLICY"]) => Class::PolicyDetail,
            () if at.take(&["EVENT", "TRIGGER"]) => Class::EventTrigger,
            () => Class::Comment,
        };
    }
    if at.take(&["GRANT"]) || at.take(&["REVOKE"]) || at.take(&["ALTER", "DEFAULT", "PRIVILEGES"]) {
        return Class::Privilege;
    }
    if at.take(&["REFRESH", "MATERIALIZED", "VIEW"]) {
        return Class::Refresh { view: at.table() };
    }
    if at.take(&["CREATE"]) {
        return created(at);
    }
    if at.take(&["ALTER"]) {
        return altered(at, statement);
    }
    Class::Other
}

fn created(mut at: Cursor<'_>) -> Class {
    if at.take(&["PUBLICATION"]) || at.take(&["SUBSCRIPTION"]) {
        return Class::Replication;
    }
    if at.take(&["SCHEMA"]) {
        return Class::Schema;
    }
    if at.take(&["EXTENSION"]) {
        return Class::Extension;
    }
    if at.take(&["STATISTICS"]) {
        return Class::IndexDetail;
    }
    if at.take(&["EVENT", "TRIGGER"]) {
        return Class::EventTrigger;
    }
    if at.take(&["POLICY"]) {
        let named = at.name().is_some() && at.take(&["ON"]);
        return match at.table().filter(|_| named) {
            Some(table) => Class::Policy { table },
            None => Class::Other,
        };
    }
    if at.take(&["TABLE"]) || at.take(&["UNLOGGED", "TABLE"]) || at.take(&["FOREIGN", "TABLE"]) {
        return match at.table() {
            Some(table) => Class::Table { table },
            None => Class::Other,
        };
    }
    if at.take(&["MATERIALIZED", "VIEW"]) {
        return match at.table() {
            Some(view) => Class::MaterializedView { view },
            None => Class::Other,
        };
    }
    at.take(&["UNIQUE"]);
    if at.take(&["INDEX"]) {
        let name = at.name();
        if at.take(&["ON"]) {
            at.take(&["ONLY"]);
            if let (Some(name), Some(table)) = (name, at.table()) {
                return Class::Index { table, name };
            }
        }
    }
    Class::Other
}

fn altered(mut at: Cursor<'_>, statement: &str) -> Class {
    let names_owner = || role_after(statement, " OWNER TO ").is_some();
    if at.take(&["PUBLICATION"]) || at.take(&["SUBSCRIPTION"]) {
        return Class::Replication;
    }
    if at.take(&["EVENT", "TRIGGER"]) {
        return Class::EventTrigger;
    }
    if at.take(&["INDEX"]) || at.take(&["STATISTICS"]) {
        return if names_owner() {
            Class::Privilege
        } else {
            Class::IndexDetail
        };
    }
    if at.take(&["TABLE"]) {
        at.take(&["IF", "EXISTS"]);
        let only = if at.take(&["ONLY"]) {
            Only::Yes
        } else {
            Only::No
        };
        if let Some(class) = at.table().and_then(|table| table_changed(at, table, only)) {
            return class;
        }
    }
    if names_owner() {
        Class::Privilege
    } else {
        Class::Other
    }
}

fn table_changed(mut at: Cursor<'_>, table: TableName, only: Only) -> Option<Class> {
    if at.take(&["REPLICA", "IDENTITY", "USING", "INDEX"]) {
        let index = at.name()?;
        return Some(Class::Identity { table, index });
    }
    if at.take(&["CLUSTER", "ON"]) {
        return Some(Class::IndexDetail);
    }
    if at.take(&["ATTACH", "PARTITION"]) {
        return Some(Class::Attach);
    }
    let security = ["ENABLE", "FORCE"]
        .iter()
        .any(|how| at.take(&[how, "ROW", "LEVEL", "SECURITY"]));
    if security {
        return Some(Class::RowSecurity);
    }
    if !at.take(&["ADD", "CONSTRAINT"]) {
        return None;
    }
    let name = at.name()?;
    if at.take(&["FOREIGN", "KEY"]) {
        let name = Identifier::parse(name).ok()?;
        return Some(Class::ForeignKey { table, name, only });
    }
    let key = at.take(&["PRIMARY", "KEY"]) || at.take(&["UNIQUE"]) || at.take(&["EXCLUDE"]);
    key.then_some(Class::Key { table, name })
}

/// Whether a statement adds a primary key.
pub(crate) fn is_primary_key(statement: &str) -> bool {
    let tokens = tokens(statement);
    let mut at = Cursor(&tokens);
    if !at.take(&["ALTER", "TABLE"]) {
        return false;
    }
    at.take(&["ONLY"]);
    at.table().is_some()
        && at.take(&["ADD", "CONSTRAINT"])
        && at.name().is_some()
        && at.take(&["PRIMARY", "KEY"])
}

/// The role that the last `keyword` of the statement names, if a role's name follows it and nothing
/// but words after that.
fn role_after(statement: &str, keyword: &str) -> Option<String> {
    let at = statement.rfind(keyword)?;
    let rest = tokens(&statement[at + keyword.len()..]);
    let name = Cursor(&rest).name()?;
    let plain = rest.iter().all(|token| !matches!(token, Token::Mark(_)));
    plain.then_some(name)
}

/// The role a privilege statement is about, where it can be told.
pub(crate) fn role(statement: &str) -> Option<String> {
    [" OWNER TO ", " TO ", " FROM "]
        .into_iter()
        .find_map(|keyword| role_after(statement, keyword))
}

/// The first line of a statement, cut to a readable length, for an error. A schema dump holds no
/// row values, and its first lines name the object.
pub(crate) fn headline(statement: &str) -> String {
    let line = statement.lines().next().unwrap_or_default().trim_end();
    let mut short: String = line.chars().take(160).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
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
}
