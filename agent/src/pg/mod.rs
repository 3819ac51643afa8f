//! This node's PostgreSQL: connection strings, connections, the catalog.
//!
//! In the order of use: [`Conninfo`] → `dial` (a `transport`, with TLS where wanted) → [`Session`]
//! (queries, through tokio-postgres; those that are done wait in `idle`) or [`raw`] (COPY and the replication protocol, without allocations per
//! row) → [`catalog`], [`secret_sql`].
//!
//! Both kinds of connection use one dialer and so reach the same server in the same way. No password, key
//! or row value leaves this module in an error or a log: see [`PgError`].

pub(crate) mod catalog;
pub(crate) mod lock_timeout;
pub(crate) mod mark;
pub(crate) mod owner_code;
pub(crate) mod raw;
pub(crate) mod secret_sql;

mod conninfo;
mod dial;
mod error;
mod fault;
mod guard;
mod idle;
mod literal;
mod patient;
mod repeated;
mod session;
mod settings;
mod tls;
mod transport;

pub(crate) use conninfo::Conninfo;
pub(crate) use error::key_columns;
pub(crate) use error::{PgError, ServerError};
pub(crate) use guard::OwnSchema;
pub(crate) use literal::literal;
pub(crate) use lock_timeout::SHORT_LOCK_TIMEOUT;
pub(crate) use session::Session;
pub(crate) use settings::{DURABLE, sync};
