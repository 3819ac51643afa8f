//! The enum types behind columns: PostgreSQL sends labels as text, and a subscriber that lacks one stops.

use steep_protocol::message::agent::{EnumLabels, LABELS_MAX};
use tokio_postgres::types::Type;

use super::{PgError, Session, table_name};

/// The enum types of the columns of `carried`, a list of common table expressions with one parameter whose
/// last has a `name` and a `relation`: by name. Looks into arrays, domains, composites and ranges. At most
/// [`LABELS_MAX`] bytes.
pub(crate) async fn enum_labels(
    session: &Session,
    carried: &str,
    parameter: &str,
) -> Result<Vec<(String, EnumLabels)>, PgError> {
    let sql = format!(
        "{carried}, used AS ( \
             SELECT DISTINCT carried.name, a.atttypid AS type FROM carried \
             JOIN pg_attribute a ON a.attrelid = carried.relation AND a.attnum > 0 AND NOT a.attisdropped \
             WHERE a.atttypid >= 16384 \
             UNION \
             SELECT u.name, part.type FROM used u JOIN pg_type t ON t.oid = u.type \
             CROSS JOIN LATERAL ( \
                 SELECT t.typelem AS type WHERE t.typelem <> 0 \
                 UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0 \
                 UNION ALL SELECT a.atttypid FROM pg_attribute a \
                     WHERE t.typrelid <> 0 AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped \
                 UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid) \
             ) AS part WHERE part.type >= 16384 \
         ) \
         SELECT u.name, n.nspname::text, t.typname::text, array_agg(e.enumlabel::text ORDER BY e.enumsortorder) \
         FROM used u JOIN pg_type t ON t.oid = u.type AND t.typtype = 'e' \
         JOIN pg_namespace n ON n.oid = t.typnamespace JOIN pg_enum e ON e.enumtypid = t.oid \
         GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    );
    let rows = session
        .query_typed(&sql, &[(&parameter, Type::TEXT)])
        .await?;
    let mut room = LABELS_MAX;
    let mut found = Vec::new();
    for row in &rows {
        let labels = EnumLabels {
            name: table_name(row, 1)?,
            labels: row.try_get(3)?,
        };
        let bytes: usize = labels.labels.iter().map(|label| label.len() + 8).sum();
        let Some(left) = room.checked_sub(bytes + 64) else {
            break;
        };
        room = left;
        found.push((row.try_get(0)?, labels));
    }
    Ok(found)
}
