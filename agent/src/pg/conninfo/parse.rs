//! libpq's two notations, into keys and values. Pure: no environment, files or defaults.
//!
//! PostgreSQL manual, section "Connection Strings". Errors never repeat a value.

use std::collections::BTreeMap;

const TEXT_MAX: usize = 64 * 1024;

/// Keys that we act on.
const KEYS: [&str; 20] = [
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "passfile",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "connect_timeout",
    "application_name",
    "options",
    "target_session_attrs",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "channel_binding",
];

/// libpq's keys that we only pass on to programs that use libpq.
const PASSED_ON: [&str; 5] = [
    "client_encoding",
    "fallback_application_name",
    "gssencmode",
    "sslsni",
    "tcp_user_timeout",
];

/// Why a text is not a connection string; fit to be shown.
pub(super) type Reason = String;

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Settings {
    values: BTreeMap<&'static str, String>,
}

impl Settings {
    /// An empty value counts as none, as in libpq.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.values
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    pub(super) fn passed_on(&self) -> impl Iterator<Item = (&'static str, &str)> {
        PASSED_ON
            .iter()
            .filter_map(|key| self.get(key).map(|value| (*key, value)))
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), Reason> {
        let known = KEYS.iter().chain(&PASSED_ON).find(|known| **known == key);
        let Some(known) = known else {
            let shown: String = key.chars().take(40).collect();
            return Err(match shown.as_str() {
                "service" | "servicefile" => {
                    "service files are not read; write the connection out".to_owned()
                }
                _ => format!(
                    "{shown:?} is not a known key; known are {}",
                    KEYS.join(", ")
                ),
            });
        };
        if value.contains('\0') {
            return Err(format!("the value of {known} contains a NUL byte"));
        }
        self.values.insert(known, value);
        Ok(())
    }
}

pub(super) fn parse(text: &str) -> Result<Settings, Reason> {
    if text.len() > TEXT_MAX {
        return Err(format!("it is longer than {TEXT_MAX} bytes"));
    }
    let uri = text
        .strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"));
    match uri {
        Some(rest) => parse_uri(rest),
        None => parse_keywords(text),
    }
}

fn parse_keywords(text: &str) -> Result<Settings, Reason> {
    let mut settings = Settings::default();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let Some((key, after)) = rest.split_once('=') else {
            return Err("write it as key=value pairs or as postgresql://…; an = is missing".into());
        };
        let key = key.trim_end();
        if key.contains(char::is_whitespace) {
            return Err("an = is missing after a key, or a value with spaces is not quoted".into());
        }
        let (value, after) = take_value(after.trim_start(), key)?;
        settings.set(key, value)?;
        rest = after.trim_start();
    }
    Ok(settings)
}

/// One value, quoted or bare, and what follows it. A backslash escapes the next character.
fn take_value<'a>(text: &'a str, key: &str) -> Result<(String, &'a str), Reason> {
    let (quoted, text) = match text.strip_prefix('\'') {
        Some(inner) => (true, inner),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted {
        let key: String = key.chars().take(40).collect();
        return Err(format!("the quoted value of {key} does not end"));
    }
    Ok((value, ""))
}

/// `[user[:password]@][host[:port][,…]][/dbname][?key=value[&…]]`, after the scheme.
fn parse_uri(text: &str) -> Result<Settings, Reason> {
    let mut settings = Settings::default();
    let (text, query) = match text.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (text, None),
    };
    // As in libpq, the first @ ends the user unless a / comes first: an @ in a password is %40.
    let authority_end = text.find('/').unwrap_or(text.len());
    let (userinfo, rest) = match text[..authority_end].find('@') {
        Some(at) => (Some(&text[..at]), &text[at + 1..]),
        None => (None, text),
    };
    if let Some(userinfo) = userinfo {
        let (user, password) = match userinfo.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (userinfo, None),
        };
        settings.set("user", decode(user, "user")?)?;
        if let Some(password) = password {
            settings.set("password", decode(password, "password")?)?;
        }
    }
    let (hosts, dbname) = match rest.split_once('/') {
        Some((hosts, dbname)) => (hosts, dbname),
        None => (rest, ""),
    };
    set_uri_hosts(&mut settings, hosts)?;
    if !dbname.is_empty() {
        settings.set("dbname", decode(dbname, "dbname")?)?;
    }
    for pair in query
        .into_iter()
        .flat_map(|q| q.split('&'))
        .filter(|p| !p.is_empty())
    {
        let Some((key, value)) = pair.split_once('=') else {
            return Err("a parameter after ? has no value".into());
        };
        let key = decode(key, "a parameter's name")?;
        let value = decode(value, &key)?;
        match key.as_str() {
            // JDBC's spelling, which libpq accepts in URIs.
            "ssl" if value == "true" => settings.set("sslmode", "require".into())?,
            _ => settings.set(&key, value)?,
        }
    }
    Ok(settings)
}

fn set_uri_hosts(settings: &mut Settings, hosts: &str) -> Result<(), Reason> {
    if hosts.is_empty() {
        return Ok(());
    }
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = if let Some(inner) = host.strip_prefix('[') {
            let (name, after) = inner
                .split_once(']')
                .ok_or("an IPv6 address in brackets does not end")?;
            let port = match after.strip_prefix(':') {
                Some(port) => port,
                None if after.is_empty() => "",
                None => return Err("only :port may follow an IPv6 address in brackets".into()),
            };
            (name, port)
        } else {
            host.split_once(':').unwrap_or((host, ""))
        };
        names.push(decode(name, "host")?);
        ports.push(decode(port, "port")?);
    }
    settings.set("host", names.join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        settings.set("port", ports.join(","))?;
    }
    Ok(())
}

/// Undoes percent-encoding.
fn decode(text: &str, what: &str) -> Result<String, Reason> {
    let bad = || {
        let what: String = what.chars().take(40).collect();
        format!("{what} in the URI is not percent-encoded correctly")
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = char::from(rest.next()?).to_digit(16)?;
            u8::try_from(digit).ok()
        };
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(bad());
        };
        bytes.push(high << 4 | low);
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(text: &str, key: &str) -> Option<String> {
        parse(text).unwrap().get(key).map(str::to_owned)
    }

    #[test]
    fn keywords_are_read_as_libpq_reads_them() {
        let text = r"host = 'a b' user=o\'hara password='it\'s \\ here' dbname= x  port=5433";
        assert_eq!(get(text, "host").unwrap(), "a b");
        assert_eq!(get(text, "user").unwrap(), "o'hara");
        assert_eq!(get(text, "password").unwrap(), r"it's \ here");
        assert_eq!(get(text, "dbname").unwrap(), "x");
        assert_eq!(get(text, "port").unwrap(), "5433");
        assert_eq!(get("", "host"), None);
        assert_eq!(get("host=''", "host"), None);
    }

    #[test]
    fn uris_are_read_as_libpq_reads_them() {
        let text =
            "postgresql://us%40er:p%2Fw@h1:5433,[::1],h3:1/d%62?sslmode=require&connect_timeout=3";
        assert_eq!(get(text, "user").unwrap(), "us@er");
        assert_eq!(get(text, "password").unwrap(), "p/w");
        assert_eq!(get(text, "host").unwrap(), "h1,::1,h3");
        assert_eq!(get(text, "port").unwrap(), "5433,,1");
        assert_eq!(get(text, "dbname").unwrap(), "db");
        assert_eq!(get(text, "sslmode").unwrap(), "require");
        assert_eq!(get("postgres:///x?host=%2Ftmp", "host").unwrap(), "/tmp");
        assert_eq!(get("postgres://", "host"), None);
        assert_eq!(get("postgres://%2Ftmp/x", "host").unwrap(), "/tmp");
    }

    #[test]
    fn what_is_wrong_is_said_without_repeating_a_value() {
        for bad in [
            "host",
            "host a=b",
            "password='hunter2",
            "nonsense=hunter2",
            "service=hunter2",
            "postgres://u:hunter2%zz@h/d",
            "postgres://u:hunter2%f@h/d",
            "postgres://[::1/d",
            "postgres://[::1]x/d",
            "postgres://h/d?sslmode",
            "postgres://h/d?user=%ff",
        ] {
            let Err(reason) = parse(bad) else {
                panic!("{bad:?} was taken")
            };
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_settings_or_a_reason(text: String) {
            let _ = parse(&text);
            let _ = parse(&format!("postgresql://{text}"));
        }

        #[test]
        fn a_quoted_value_reads_back_as_itself(value in "[^\0]{1,30}") {
            let text = format!("user={}", super::super::quote(&value));
            prop_assert_eq!(get(&text, "user").unwrap(), value);
        }
    }
}
