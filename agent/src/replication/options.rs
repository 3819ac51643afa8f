//! Options that an operator may have given a subscription, for one that takes its place.

use steep_protocol::{Fault, Identifier};

use crate::node::connection::Conn;

/// Columns of `pg_subscription` with the names of their options, and the first version that has them.
const OPTIONS: [(&str, &str, u32); 7] = [
    ("subbinary", "binary", 140_000),
    ("subsynccommit", "synchronous_commit", 140_000),
    ("substream", "streaming", 140_000),
    ("subdisableonerr", "disable_on_error", 150_000),
    ("subrunasowner", "run_as_owner", 160_000),
    ("subpasswordrequired", "password_required", 160_000),
    ("subfailover", "failover", 170_000),
];

/// Gives the second subscription, `name`, the options of the first. Both stand still.
pub(super) async fn carry_over(
    conn: &Conn,
    (old, new): (u32, u32),
    name: &Identifier,
) -> Result<(), Fault> {
    let version = conn.session.server_version();
    let known = OPTIONS.iter().filter(|(_, _, since)| version >= *since);
    let (columns, options): (Vec<_>, Vec<_>) =
        known.map(|(column, option, _)| (*column, *option)).unzip();
    let values = columns.iter().map(|column| format!("{column}::text"));
    let sql = format!(
        "SELECT ARRAY[{}] FROM pg_subscription WHERE oid = $1",
        values.collect::<Vec<_>>().join(", ")
    );
    let old: Vec<String> = conn.row(&sql, &[&old]).await?.get(0);
    let new: Vec<String> = conn.row(&sql, &[&new]).await?.get(0);
    for ((option, old), new) in options.iter().zip(&old).zip(&new) {
        if old != new {
            let value = value(old);
            let set = format!(
                "ALTER SUBSCRIPTION {} SET ({option} = {value})",
                name.quoted()
            );
            conn.execute(&set).await?;
        }
    }
    Ok(())
}

/// An option as it is set. Before 16, `substream` is a boolean.
fn value(stored: &str) -> &str {
    match stored {
        "t" | "true" => "true",
        "f" | "false" => "false",
        "p" => "parallel",
        // Of `synchronous_commit`.
        "on" => "on",
        "off" => "off",
        "local" => "local",
        "remote_write" => "remote_write",
        _ => "remote_apply",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_catalog_says_is_what_is_set() {
        for (stored, set) in [
            ("t", "true"),
            ("f", "false"),
            ("true", "true"),
            ("p", "parallel"),
            ("off", "off"),
            ("remote_apply", "remote_apply"),
        ] {
            assert_eq!(value(stored), set);
        }
    }
}
