//! The source's catalog as a snapshot sees it, or as it is now.

use std::collections::{HashMap, HashSet};

use steep_protocol::message::agent::OpenSource;
use steep_protocol::{Identifier, TableName};

use super::listing::Listing;
use super::table_state::{self, TableState};
use super::{plan, publication};
use crate::dump::selection::Selection;
use crate::pg::{PgError, Session, literal};

pub(super) fn import(snapshot: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT {}",
        literal(snapshot)
    )
}

/// What the catalog says at the snapshot.
pub(super) struct Catalog {
    pub(super) listing: Listing,
    pub(super) names: Vec<TableName>,
    /// What `pg_dump` is to select; `None` where the filter chooses everything.
    pub(super) selection: Option<Selection>,
    pub(super) states: HashMap<u32, TableState>,
}

/// Reads the catalog under the snapshot, or the current one without, in a transaction of its own.
pub(super) async fn read(
    session: &Session,
    export: Option<&str>,
    publication: &Identifier,
    request: &OpenSource,
) -> Result<Catalog, PgError> {
    let begin = export.map_or_else(|| "BEGIN READ ONLY".to_owned(), import);
    session.batch_execute(&begin).await?;
    let reading = async {
        let listing = Listing::load(session).await?;
        let names = plan::names(&listing, &request.filter);
        let published = published_oids(session, publication).await?;
        let names = publication::published(&listing, &published, names);
        let oids = oids(&listing, &names);
        let states = table_state::load(session, &oids).await?;
        let selection = Selection::load(session, &request.filter, &listing.partitions).await?;
        Ok(Catalog {
            listing,
            names,
            selection,
            states,
        })
    };
    let read = reading.await;
    session.batch_execute("ROLLBACK").await?;
    read
}

pub(super) fn oids(listing: &Listing, names: &[TableName]) -> Vec<u32> {
    let known = names.iter().filter_map(|name| listing.relations.get(name));
    known.map(|relation| relation.oid).collect()
}

/// What the publication names, as the catalog session sees it.
pub(crate) async fn published_oids(
    session: &Session,
    name: &Identifier,
) -> Result<HashSet<u32>, PgError> {
    let sql = "SELECT r.prrelid FROM pg_publication_rel r \
         JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1";
    let rows = session.query(sql, &[&name.as_str()]).await?;
    rows.iter()
        .map(|row| row.try_get(0).map_err(PgError::from))
        .collect()
}
