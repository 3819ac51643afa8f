//! Cuts the plain output of `pg_dump` into statements, byte by byte, as it arrives.
//!
//! Knows the lexical rules that a cut needs: quotes of every kind, nested comments, parentheses,
//! SQL-standard function bodies. Never interprets a statement ([`super::statement`] does). No input makes
//! it panic or hold more than [`STATEMENT_MAX`] bytes.
//!
//! Follows the manual's chapter "Lexical Structure", and psql where the two differ: lines that begin with a
//! backslash are psql commands and dropped.

/// In bytes. pg_dump writes one function, view or comment per statement, and PostgreSQL cannot hold a text
/// of more than 1 GiB; real ones are a few KiB.
pub(crate) const STATEMENT_MAX: usize = 64 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SplitError {
    #[error("a statement of the schema dump is longer than {limit} bytes")]
    TooLong { limit: usize },
    /// The text ends inside of this.
    #[error("the schema dump ends inside {0}")]
    Unfinished(&'static str),
    #[error("the schema dump is not UTF-8")]
    NotUtf8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Plain,
    Dash,
    Slash,
    Line,
    /// In `/* */`, this deep; the last byte may be half of a delimiter.
    Block {
        depth: u32,
        last: u8,
    },
    Quote {
        backslash: Backslash,
        escaped: bool,
    },
    Name,
    /// After `$`, in a possible tag that begins at this index of the statement.
    Tag {
        start: usize,
    },
    /// In a dollar quote: its delimiter, and how much of it the last bytes match.
    Dollar {
        delimiter: Vec<u8>,
        matched: usize,
    },
    /// In a psql command, to the end of the line.
    Meta,
}

/// What a backslash means in a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backslash {
    Literal,
    Escapes,
}

/// An incremental splitter: [`push`](Self::push) bytes, take [`next`](Self::next) statements,
/// [`finish`](Self::finish) at the end.
#[derive(Debug)]
pub(crate) struct Splitter {
    input: Vec<u8>,
    read: usize,
    statement: Vec<u8>,
    state: State,
    /// Depth: semicolons inside separate a rule's actions.
    parens: u32,
    body: Body,
    words: Words,
    word: Vec<u8>,
    /// The last byte outside quotes, comments and whitespace before the current word.
    before: u8,
    /// The mode of a string that just ended: another quote continues it.
    continued: Option<Backslash>,
    /// Whether only whitespace with a line break followed that string.
    gap: Gap,
    standard_strings: bool,
    limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    None,
    Blank,
    LineBreak,
}

/// Whether the statement may have, or is in, `BEGIN ATOMIC … END`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Outside,
    Begin,
    /// In the body, with this many open CASEs, plus one.
    Inside(u32),
}

impl Body {
    /// Something other than a word came.
    fn not_followed(&mut self) {
        if *self == Self::Begin {
            *self = Self::Outside;
        }
    }
}

/// How a statement begins, as far as the cut depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    Start,
    Create,
    CreateOr,
    CreateOrReplace,
    Routine,
    Other,
}

impl Default for Splitter {
    fn default() -> Self {
        Self::with_limit(STATEMENT_MAX)
    }
}

fn is_word_start(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_' || b >= 0x80
}

fn is_blank(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c)
}

fn is_word(b: u8) -> bool {
    is_word_start(b) || b.is_ascii_digit() || b == b'$'
}

impl Splitter {
    fn with_limit(limit: usize) -> Self {
        Self {
            input: Vec::new(),
            read: 0,
            statement: Vec::new(),
            state: State::Plain,
            parens: 0,
            body: Body::Outside,
            words: Words::Start,
            word: Vec::new(),
            before: 0,
            continued: None,
            gap: Gap::None,
            standard_strings: true,
            limit,
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.input.drain(..self.read);
        self.read = 0;
        self.input.extend_from_slice(bytes);
    }

    /// The next complete statement, without its semicolon and leading comments and whitespace; `None` where
    /// more input is needed. The splitter is useless after an error.
    pub(crate) fn next(&mut self) -> Result<Option<String>, SplitError> {
        while let Some(&byte) = self.input.get(self.read) {
            self.read += 1;
            if self.step(byte)
                && let Some(statement) = self.take()?
            {
                return Ok(Some(statement));
            }
            if self.statement.len() > self.limit {
                return Err(SplitError::TooLong { limit: self.limit });
            }
        }
        Ok(None)
    }

    /// Ends the input; returns a last statement without a semicolon. Fails where the text ends inside a
    /// quote, comment or body.
    pub(crate) fn finish(&mut self) -> Result<Option<String>, SplitError> {
        match self.state {
            State::Plain | State::Dash | State::Slash | State::Line | State::Meta => {}
            State::Tag { .. } => {}
            State::Block { .. } => return Err(SplitError::Unfinished("a comment")),
            State::Quote { .. } => return Err(SplitError::Unfinished("a string")),
            State::Name => return Err(SplitError::Unfinished("a quoted name")),
            State::Dollar { .. } => return Err(SplitError::Unfinished("a dollar-quoted string")),
        }
        self.end_word();
        if self.parens > 0 {
            return Err(SplitError::Unfinished("parentheses"));
        }
        if matches!(self.body, Body::Inside(_)) {
            return Err(SplitError::Unfinished("a function body"));
        }
        self.take()
    }

    /// Returns whether the byte ends the statement.
    fn step(&mut self, byte: u8) -> bool {
        match &mut self.state {
            State::Plain => return self.plain(byte),
            State::Dash if byte == b'-' => {
                self.statement.pop();
                self.state = State::Line;
            }
            State::Slash if byte == b'*' => {
                self.statement.pop();
                self.state = State::Block { depth: 1, last: 0 };
            }
            State::Dash | State::Slash => {
                // An operator after all.
                self.body.not_followed();
                self.state = State::Plain;
                return self.plain(byte);
            }
            State::Line => {
                if byte == b'\n' {
                    self.state = State::Plain;
                    return self.plain(byte);
                }
            }
            State::Block { depth, last } => {
                let pair = (*last, byte);
                *last = byte;
                match pair {
                    (b'/', b'*') => (*depth, *last) = (*depth + 1, 0),
                    (b'*', b'/') => (*depth, *last) = (*depth - 1, 0),
                    _ => {}
                }
                if *depth == 0 {
                    // A comment separates like whitespace.
                    self.state = State::Plain;
                    return self.plain(b' ');
                }
            }
            State::Quote { backslash, escaped } => {
                self.statement.push(byte);
                if *escaped {
                    *escaped = false;
                } else if byte == b'\\' && *backslash == Backslash::Escapes {
                    *escaped = true;
                } else if byte == b'\'' {
                    self.continued = Some(*backslash);
                    self.gap = Gap::None;
                    self.state = State::Plain;
                }
            }
            State::Name => {
                // A doubled quote closes and reopens: the same text either way.
                self.statement.push(byte);
                if byte == b'"' {
                    self.state = State::Plain;
                }
            }
            State::Tag { start } => {
                let start = *start;
                if byte == b'$' {
                    self.statement.push(byte);
                    let delimiter = self.statement[start..].to_vec();
                    self.state = State::Dollar {
                        delimiter,
                        matched: 0,
                    };
                } else if is_word(byte)
                    && (self.statement.len() > start + 1 || !byte.is_ascii_digit())
                {
                    self.statement.push(byte);
                } else {
                    self.state = State::Plain;
                    return self.plain(byte);
                }
            }
            State::Dollar { delimiter, matched } => {
                self.statement.push(byte);
                // A delimiter has `$` only at its ends, so after a mismatch a new match can begin with this
                // byte at the earliest.
                if byte == delimiter[*matched] {
                    *matched += 1;
                } else {
                    *matched = usize::from(byte == b'$');
                }
                if *matched == delimiter.len() {
                    self.state = State::Plain;
                }
            }
            State::Meta => {
                if byte == b'\n' {
                    self.state = State::Plain;
                }
            }
        }
        false
    }

    fn plain(&mut self, byte: u8) -> bool {
        if is_word(byte) && (!self.word.is_empty() || byte != b'$') {
            self.word.push(byte);
            // Longer than any keyword.
            self.word.truncate(16);
            self.statement.push(byte);
            self.continued = None;
            return false;
        }
        let prefix_e = self.word.eq_ignore_ascii_case(b"e");
        self.end_word();
        self.follow_string(byte);
        if !is_blank(byte) {
            self.follow_token(byte);
        }
        match byte {
            _ if is_blank(byte) => {
                if !self.statement.is_empty() {
                    self.statement.push(byte);
                }
                return false;
            }
            b';' if self.parens == 0 && !matches!(self.body, Body::Inside(_)) => return true,
            b'\\' if self.statement.is_empty() => {
                self.state = State::Meta;
                return false;
            }
            b'-' => self.state = State::Dash,
            b'/' => self.state = State::Slash,
            b'\'' => {
                let escapes = prefix_e || !self.standard_strings;
                let backslash = match self.continued.take() {
                    Some(mode) => mode,
                    None if escapes => Backslash::Escapes,
                    None => Backslash::Literal,
                };
                self.state = State::Quote {
                    backslash,
                    escaped: false,
                };
            }
            b'"' => self.state = State::Name,
            b'$' => {
                self.state = State::Tag {
                    start: self.statement.len(),
                };
            }
            b'(' => self.parens += 1,
            b')' => self.parens = self.parens.saturating_sub(1),
            _ => {}
        }
        self.statement.push(byte);
        false
    }

    /// A string goes on after a doubled quote, or after whitespace with a line break (the manual's "String
    /// Constants"); anything else ends it.
    fn follow_string(&mut self, byte: u8) {
        if self.continued.is_none() {
            return;
        }
        match byte {
            b'\n' | b'\r' => self.gap = Gap::LineBreak,
            b' ' | b'\t' | 0x0b | 0x0c => {
                if self.gap == Gap::None {
                    self.gap = Gap::Blank;
                }
            }
            b'\'' if self.gap != Gap::Blank => {}
            _ => self.continued = None,
        }
    }

    /// A token that is not a word began with `byte`. BEGIN ATOMIC has none in between, except comments,
    /// which begin with the same bytes as operators.
    fn follow_token(&mut self, byte: u8) {
        self.before = byte;
        if !matches!(byte, b'-' | b'/') {
            self.body.not_followed();
        }
    }

    fn end_word(&mut self) {
        if self.word.is_empty() {
            return;
        }
        // A name follows a dot, even if it looks like a keyword.
        let keyword = self.before != b'.';
        self.before = 0;
        let is = |text: &str| keyword && self.word.eq_ignore_ascii_case(text.as_bytes());
        self.words = match self.words {
            Words::Start if is("create") => Words::Create,
            Words::Create if is("or") => Words::CreateOr,
            Words::CreateOr if is("replace") => Words::CreateOrReplace,
            Words::Create | Words::CreateOrReplace if is("function") || is("procedure") => {
                Words::Routine
            }
            Words::Routine => Words::Routine,
            _ => Words::Other,
        };
        if self.words == Words::Routine {
            self.body = match self.body {
                Body::Outside | Body::Begin if self.parens == 0 && is("begin") => Body::Begin,
                Body::Begin if is("atomic") => Body::Inside(1),
                Body::Outside | Body::Begin => Body::Outside,
                Body::Inside(depth) if is("case") => Body::Inside(depth + 1),
                Body::Inside(1) if is("end") => Body::Outside,
                Body::Inside(depth) if is("end") => Body::Inside(depth - 1),
                Body::Inside(depth) => Body::Inside(depth),
            };
        }
        self.word.clear();
    }

    /// Returns the statement that ended, if any, and resets for the next.
    fn take(&mut self) -> Result<Option<String>, SplitError> {
        self.parens = 0;
        self.body = Body::Outside;
        self.words = Words::Start;
        self.word.clear();
        self.before = 0;
        self.continued = None;
        self.state = State::Plain;
        let mut bytes = std::mem::take(&mut self.statement);
        let length = bytes.trim_ascii_end().len();
        bytes.truncate(length);
        if bytes.is_empty() {
            return Ok(None);
        }
        let statement = String::from_utf8(bytes).map_err(|_| SplitError::NotUtf8)?;
        self.note_string_syntax(&statement);
        Ok(Some(statement))
    }

    /// pg_dump writes strings in the source server's syntax, and announces it first.
    fn note_string_syntax(&mut self, statement: &str) {
        let mut words = statement.split_ascii_whitespace();
        let is_set = words.next().is_some_and(|w| w.eq_ignore_ascii_case("set"));
        if is_set && words.next() == Some("standard_conforming_strings") {
            self.standard_strings = statement.trim_end().ends_with("on");
        }
    }
}

#[cfg(test)]
mod tests;
