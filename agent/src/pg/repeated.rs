//! Statements that a session runs again and again are planned once. Agents look at catalogs every second, and planning
//! these queries takes the server longer than running them.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Statement};

use crate::mutex::lock;

/// More statements than any session repeats. Beyond that they are planned each time.
const STATEMENTS_MAX: usize = 64;

/// A session's statements.
#[derive(Debug, Default)]
pub(super) struct Repeated {
    statements: Mutex<HashMap<String, Option<Statement>>>,
}

impl Repeated {
    /// The prepared statement, from its second run on: most sessions run theirs once, and preparing costs a round trip.
    pub(super) async fn prepared(
        &self,
        client: &Client,
        sql: &str,
        types: &[Type],
    ) -> Result<Option<Statement>, tokio_postgres::Error> {
        {
            let mut statements = lock(&self.statements);
            match statements.get(sql) {
                Some(Some(prepared)) => return Ok(Some(prepared.clone())),
                Some(None) => {}
                None => {
                    if statements.len() < STATEMENTS_MAX {
                        statements.insert(sql.to_owned(), None);
                    }
                    return Ok(None);
                }
            }
        }
        let prepared = client.prepare_typed(sql, types).await?;
        lock(&self.statements).insert(sql.to_owned(), Some(prepared.clone()));
        Ok(Some(prepared))
    }
}
