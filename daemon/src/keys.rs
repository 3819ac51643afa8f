//! Keys of a configuration file. They have hyphens, and may be written with underscores, as in the file of
//! the command line.

use toml::Table;

/// The table with hyphens in its keys.
///
/// # Errors
/// If a key is set in both spellings.
pub(crate) fn hyphened(table: Table) -> Result<Table, String> {
    let mut all = Table::new();
    for (key, value) in table {
        let key = key.replace('_', "-");
        if all.contains_key(&key) {
            return Err(format!("{key} is set twice"));
        }
        all.insert(key, value);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_two_spellings_and_one_value() {
        let read = |text: &str| hyphened(toml::from_str(text).unwrap());
        let both = read("data_dir = 'x'\nlog-format = 'json'").unwrap();
        let keys: Vec<_> = both.keys().cloned().collect();
        assert_eq!(keys, ["data-dir", "log-format"]);
        let twice = read("data_dir = 'x'\ndata-dir = 'y'").unwrap_err();
        assert_eq!(twice, "data-dir is set twice");
    }
}
