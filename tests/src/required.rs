//! What tests need and a machine may lack.

use anyhow::Result;

/// Whether a test fails that lacks what it needs: on CI, nobody would notice that it did not run.
#[must_use]
pub fn is_required() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// What was found; `None`, and says so, where it was not: on CI, that is an error. `lacking` says what is missing.
///
/// # Errors
/// It was not found on CI.
pub fn or_not_tested<T>(found: Result<T>, lacking: &str) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_required() => Err(error),
        Err(error) => {
            eprintln!("NOT TESTED: {lacking}: {error:#}");
            Ok(None)
        }
    }
}
