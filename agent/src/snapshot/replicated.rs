//! The schema that a replication carries, as the source has it, with the publication's tables named.

use backon::Retryable as _;
use steep_protocol::JobId;
use steep_protocol::message::job::{ReplicationNames, TableFilter};
use steep_protocol::message::schema::{ObjectKind, ObjectModel, SchemaPage};
use steep_schema::Schema;

use crate::pg::{Conninfo, PgError, Session, catalog, lock_timeout};

/// The schema that `filter` admits. Each table that the job's publication carries, itself or by a table
/// above it, has an object for that; our publications are otherwise left out.
pub(crate) async fn describe_replicated(
    conninfo: &Conninfo,
    filter: &TableFilter,
    job: JobId,
) -> Result<Schema, PgError> {
    let session = Session::connect_impatient(conninfo, "describe").await?;
    let mut schema = (|| catalog::read_schema(&session, filter))
        .retry(lock_timeout::a_few_times())
        .when(PgError::is_locked)
        .await?;
    let name = ReplicationNames(job).name();
    let sql = "SELECT schemaname::text, tablename::text FROM pg_publication_tables \
         WHERE pubname = $1";
    let mut objects = Vec::new();
    for row in session.query(sql, &[&name]).await? {
        objects.push(ObjectModel {
            kind: ObjectKind::Publication,
            table: Some(catalog::table_name(&row, 0)?),
            schema: None,
            name: name.clone(),
            definition: String::new(),
            rank: 0,
        });
    }
    schema.add(SchemaPage {
        tables: Vec::new(),
        objects,
    });
    session.give_back().await;
    Ok(schema)
}
