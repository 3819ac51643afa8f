//! Which names a function body in SQL or PL/pgSQL uses. Reads tokens, does not parse: it knows strings,
//! comments and quotes, and where a function, table or type is named. Never fails; linear in the body's
//! length.

use std::collections::BTreeSet;

/// A name, folded as PostgreSQL folds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    /// Where it is qualified.
    pub(super) schema: Option<String>,
    pub(super) name: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) functions: BTreeSet<Name>,
    pub(super) relations: BTreeSet<Name>,
    pub(super) types: BTreeSet<Name>,
    /// It mentions `search_path`, so its lookups are unknown.
    pub(super) sets_path: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Cast,
    Mark(char),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(known) if known == word)
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Word(name) | Self::Quoted(name) => Some(name),
            Self::Cast | Self::Mark(_) => None,
        }
    }
}

/// Functions of the SQL standard whose arguments are separated by `FROM`.
const WITH_FROM: [&str; 5] = ["extract", "substring", "trim", "overlay", "position"];

pub(super) fn names(body: &str) -> Names {
    let tokens = tokens(body);
    let own = own_names(&tokens);
    let mut found = Names {
        sets_path: tokens.iter().any(|t| t.is("search_path")) || body.contains("'search_path'"),
        ..Names::default()
    };
    // Whether each open parenthesis belongs to one of `WITH_FROM`.
    let mut open: Vec<bool> = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            Token::Mark('(') => {
                let before = at.checked_sub(1).and_then(|before| tokens[before].name());
                open.push(before.is_some_and(|name| WITH_FROM.contains(&name)));
            }
            Token::Mark(')') => _ = open.pop(),
            Token::Cast => {
                if let Some((name, _)) = chain(&tokens, at + 1) {
                    found.types.insert(name);
                }
            }
            Token::Word(_) | Token::Quoted(_) if is_continued(&tokens, at) => {}
            Token::Word(_) | Token::Quoted(_) => {
                if let Some((name, next)) = chain(&tokens, at)
                    && !(name.schema.is_none() && own.contains(&name.name))
                {
                    place(&tokens, (at, next), &open, name, &mut found);
                }
            }
            Token::Mark(_) => {}
        }
        at += 1;
    }
    found
}

/// Files the name at `from..next` under what it names, if anything.
fn place(
    tokens: &[Token],
    (from, next): (usize, usize),
    open: &[bool],
    name: Name,
    found: &mut Names,
) {
    let before = |back: usize| from.checked_sub(back).and_then(|at| tokens.get(at));
    let after = |word: &str| before(1).is_some_and(|t| t.is(word));
    let is_called = tokens.get(next) == Some(&Token::Mark('('));
    let inserted = after("into") && before(2).is_some_and(|t| t.is("insert") || t.is("merge"));
    let read = after("join")
        || after("update")
        || after("only")
        || after("using") && !is_called
        || after("from")
            && !open.last().copied().unwrap_or(false)
            && !before(2).is_some_and(|t| t.is("distinct"));
    let typed = tokens.get(next) == Some(&Token::Mark('%'))
        && tokens
            .get(next + 1)
            .is_some_and(|t| t.is("type") || t.is("rowtype"));
    if name.schema.is_none() && ["only", "lateral"].contains(&name.name.as_str()) {
        return;
    }
    if inserted || (read && !is_called) || typed {
        found.relations.insert(name);
    } else if is_called && !after("table") && !after("as") && before(1) != Some(&Token::Mark(')')) {
        found.functions.insert(name);
    }
}

/// Names that a body defines: its CTEs and temporary tables.
fn own_names(tokens: &[Token]) -> BTreeSet<String> {
    let mut own = BTreeSet::new();
    for (at, token) in tokens.iter().enumerate() {
        let ahead = |by: usize| tokens.get(at + by);
        if let Some(name) = token.name()
            && ahead(1).is_some_and(|t| t.is("as"))
            && (ahead(2) == Some(&Token::Mark('('))
                || ahead(2).is_some_and(|t| t.is("materialized") || t.is("not")))
        {
            own.insert(name.to_owned());
        }
        if (token.is("with") || token.is("recursive") || *token == Token::Mark(','))
            && ahead(2) == Some(&Token::Mark('('))
            && let Some(name) = ahead(1).and_then(Token::name)
            && columns_then_as(tokens, at + 2)
        {
            own.insert(name.to_owned());
        }
        if token.is("temp") || token.is("temporary") {
            let words = tokens.iter().skip(at + 1).take(5);
            let skip = ["table", "if", "not", "exists", "view", "sequence"];
            own.extend(
                words
                    .filter_map(Token::name)
                    .find(|name| !skip.contains(name))
                    .map(str::to_owned),
            );
        }
    }
    own
}

/// Whether the parenthesis at `at` closes before `AS (`, as a CTE's column list does.
fn columns_then_as(tokens: &[Token], at: usize) -> bool {
    // Column lists are short; anything longer is not one.
    let close = tokens
        .iter()
        .skip(at)
        .take(64)
        .position(|t| *t == Token::Mark(')'));
    close.is_some_and(|close| {
        tokens.get(at + close + 1).is_some_and(|t| t.is("as"))
            && tokens.get(at + close + 2) == Some(&Token::Mark('('))
    })
}

/// Whether the name at `at` continues an earlier one.
fn is_continued(tokens: &[Token], at: usize) -> bool {
    at.checked_sub(1)
        .is_some_and(|before| tokens[before] == Token::Mark('.') || tokens[before] == Token::Cast)
}

/// The first and last part of the name at `at`, and its end.
fn chain(tokens: &[Token], at: usize) -> Option<(Name, usize)> {
    let first = tokens.get(at)?.name()?.to_owned();
    let (mut last, mut next) = (None, at + 1);
    while tokens.get(next) == Some(&Token::Mark('.'))
        && let Some(part) = tokens.get(next + 1).and_then(Token::name)
    {
        last = Some(part.to_owned());
        next += 2;
    }
    let name = match last {
        None => Name {
            schema: None,
            name: first,
        },
        Some(name) => Name {
            schema: Some(first),
            name,
        },
    };
    Some((name, next))
}

fn tokens(body: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = body;
    while let Some(first) = rest.chars().next() {
        let second = rest[first.len_utf8()..].chars().next();
        let length = match (first, second) {
            ('-', Some('-')) => rest.find('\n').unwrap_or(rest.len()),
            ('/', Some('*')) => comment(rest),
            ('\'', _) => string(rest, Escapes::No),
            ('e' | 'E', Some('\'')) => 1 + string(&rest[1..], Escapes::Yes),
            ('"', _) => {
                let length = string_of(rest, '"', Escapes::No);
                let inner = rest[..length].trim_matches('"').replace("\"\"", "\"");
                found.push(Token::Quoted(inner));
                length
            }
            ('$', _) => match dollar(rest) {
                Some(length) => length,
                None => first.len_utf8(),
            },
            (':', Some(':')) => {
                found.push(Token::Cast);
                2
            }
            (first, _) if first.is_alphabetic() || first == '_' => {
                let length = rest
                    .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
                    .unwrap_or(rest.len());
                found.push(Token::Word(rest[..length].to_lowercase()));
                length
            }
            (first, _) if first.is_ascii_digit() => rest
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '.'))
                .unwrap_or(rest.len()),
            (first, _) => {
                if !first.is_whitespace() {
                    found.push(Token::Mark(first));
                }
                first.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    found
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    Yes,
    No,
}

fn string(text: &str, escapes: Escapes) -> usize {
    string_of(text, '\'', escapes)
}

/// Length of the string or quoted name at the start of `text`. A doubled quote ends one string and begins
/// the next, with the same result.
fn string_of(text: &str, quote: char, escapes: Escapes) -> usize {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && escapes == Escapes::Yes {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return at + c.len_utf8();
            }
        }
    }
    text.len()
}

/// Length of the comment at the start of `text`; comments nest.
fn comment(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_usize, 0);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => {
                (depth, at) = (depth.saturating_sub(1), at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    text.len()
}

/// Length of the dollar-quoted string at the start of `text`, if it is one: `$1` is a parameter.
fn dollar(text: &str) -> Option<usize> {
    let end = text[1..].find(|c: char| !(c.is_alphanumeric() || c == '_'))? + 1;
    if text.as_bytes().get(end) != Some(&b'$') {
        return None;
    }
    let tag = &text[..=end];
    if tag[1..].starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let close = text[tag.len()..].find(tag);
    Some(close.map_or(text.len(), |at| tag.len() + at + tag.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(names: &BTreeSet<Name>) -> Vec<String> {
        let show = |n: &Name| match &n.schema {
            None => n.name.clone(),
            Some(schema) => format!("{schema}.{}", n.name),
        };
        names.iter().map(show).collect()
    }

    #[test]
    fn functions_relations_and_types_are_told_apart() {
        let found = names(
            "DECLARE a public.t.c%TYPE; r audit%ROWTYPE;
             BEGIN
               -- hidden(1) /* 'no' */
               RETURN digits_of(t) || public.\"Odd\"\"f\"(x) || 'quoted(2)' || $q$ text(3) $q$
                 || (SELECT max(v)::mood FROM prices p JOIN shop.item USING (id)
                     WHERE p.day = extract(day FROM now()) AND a IS DISTINCT FROM b);
               INSERT INTO journal (a, b) VALUES (1, $1);
               UPDATE ONLY stock SET n = E'it\\'s(4)';
             END",
        );
        let functions = shown(&found.functions);
        for called in ["digits_of", "public.Odd\"f", "now"] {
            assert!(
                functions.iter().any(|f| f == called),
                "{called}: {functions:?}"
            );
        }
        for not in ["hidden", "quoted", "text", "journal", "item"] {
            assert!(!functions.iter().any(|f| f == not), "{not}: {functions:?}");
        }
        assert_eq!(
            shown(&found.relations),
            [
                "audit",
                "journal",
                "prices",
                "stock",
                "public.c",
                "shop.item"
            ]
        );
        assert_eq!(shown(&found.types), ["mood"]);
        assert!(!found.sets_path);
    }

    #[test]
    fn what_a_body_makes_itself_is_its_own() {
        let found = names(
            "CREATE TEMP TABLE IF NOT EXISTS scratch (a int);
             WITH x AS (SELECT 1), y (a, b) AS (SELECT 1, 2) SELECT FROM x, y JOIN scratch USING (a)",
        );
        assert_eq!(shown(&found.relations), Vec::<String>::new());
        assert!(!shown(&found.functions).contains(&"y".to_owned()));
        assert!(names("PERFORM set_config('search_path', 'a', true)").sets_path);
        assert!(names("SET LOCAL search_path TO a").sets_path);
    }

    proptest! {
        #[test]
        fn any_text_has_names(text: String) {
            let _ = names(&text);
        }

        #[test]
        fn any_quotes_have_names(text in "[-/*'\"$a:E\\\\(). %]{0,40}") {
            let _ = names(&text);
        }
    }
}
