//! The first tokens of a statement. Pure.

use steep_protocol::TableName;

/// Words fold to upper case, quoted names are unquoted, the rest is single characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// As written.
    Word(String),
    /// Unquoted.
    Name(String),
    Mark(char),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(w) if w.eq_ignore_ascii_case(word))
    }
}

/// Enough for any form of pg_dump's: names have at most two parts.
const TOKENS_MAX: usize = 24;

pub(super) fn tokens(statement: &str) -> Vec<Token> {
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
            // No form needs what follows a string.
            break;
        } else {
            taken = first.len_utf8();
            found.push(Token::Mark(first));
        }
        rest = rest[taken..].trim_start();
    }
    found
}

/// The quoted name at the start of `text`, and its length there.
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

pub(super) struct Cursor<'a>(pub(super) &'a [Token]);

impl Cursor<'_> {
    /// Takes the words if they come next.
    pub(super) fn take(&mut self, words: &[&str]) -> bool {
        let fits = self.0.len() >= words.len()
            && self.0.iter().zip(words).all(|(token, word)| token.is(word));
        if fits {
            self.0 = &self.0[words.len()..];
        }
        fits
    }

    pub(super) fn name(&mut self) -> Option<String> {
        let (first, rest) = self.0.split_first()?;
        let name = match first {
            Token::Word(word) => word.to_lowercase(),
            Token::Name(name) => name.clone(),
            Token::Mark(_) => return None,
        };
        self.0 = rest;
        Some(name)
    }

    /// Takes whatever comes next.
    pub(super) fn any(&mut self) -> Option<()> {
        self.0 = self.0.split_first()?.1;
        Some(())
    }

    pub(super) fn mark(&mut self, mark: char) -> bool {
        let fits = self.0.first() == Some(&Token::Mark(mark));
        if fits {
            self.0 = &self.0[1..];
        }
        fits
    }

    /// `schema.table`: pg_dump qualifies every name.
    pub(super) fn table(&mut self) -> Option<TableName> {
        let schema = self.name()?;
        if !self.mark('.') {
            return None;
        }
        TableName::new(schema, self.name()?).ok()
    }
}
