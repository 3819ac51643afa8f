//! Ways in which a target refuses or changes rows that its catalog alone would accept: missing build
//! options, triggers that also fire on replicated rows, policies that bind the owner.

use std::collections::HashMap;

use steep_protocol::TableName;
use steep_protocol::message::facts::TargetFacts;
use steep_schema::Schema;
use tokio_postgres::error::SqlState;

use super::PeerFacts;
use super::content::{FIRING_TRIGGERS, FORCED_ON, add, add_owned};
use super::features;
use crate::pg::catalog::table_name;
use crate::pg::{PgError, Session};
use crate::task::Task;

const ROLES_MAX: usize = 1_024;

/// `feature_not_supported` without libxml. Nothing in the catalog tells, and `pg_config()` is for
/// superusers. The server logs the error, so it is asked only where the source has such columns.
const XML_SQL: &str = "SELECT xmlparse(content '<a/>') IS NOT NULL";

/// Tables with triggers that fire on replicated rows, or with policies that bind their owner.
fn tables_sql() -> String {
    format!(
        "SELECT n.nspname::text, c.relname::text, f.firing, f.forced_on
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         CROSS JOIN LATERAL (SELECT {FIRING_TRIGGERS} AS firing, {FORCED_ON} AS forced_on) AS f
         WHERE c.relkind IN ('r', 'p') AND (f.firing OR f.forced_on IS NOT NULL)"
    )
}

pub(super) async fn gather(
    task: &Task,
    session: &Session,
    peer: &PeerFacts,
    facts: &mut TargetFacts,
) -> Result<(), PgError> {
    if has_xml(&peer.schema) {
        let asked = session.run(&task.cancel, session.query(XML_SQL, &[])).await;
        facts.xml = match asked {
            Ok(_) => Some(true),
            Err(error) if error.is(&SqlState::FEATURE_NOT_SUPPORTED) => Some(false),
            Err(error) => return Err(error),
        };
    }
    let abilities = features::of_target(task, session).await?;
    (facts.lz4, facts.icu) = (Some(abilities.lz4), Some(abilities.icu));
    facts.locales = abilities.locales;
    let rows = session
        .run(&task.cancel, session.query(&tables_sql(), &[]))
        .await?;
    let found: HashMap<TableName, (bool, Option<String>)> = rows
        .iter()
        .map(|row| Ok((table_name(row, 0)?, (row.get(2), row.get(3)))))
        .collect::<Result<_, PgError>>()?;
    for table in peer.schema.tables() {
        let Some((firing, forced_on)) = found.get(&table.name) else {
            continue;
        };
        if *firing {
            add(&mut facts.firing_triggers, &table.name);
        }
        if let Some(owner) = forced_on {
            add_owned(&mut facts.forced_security, owner, &table.name);
        }
    }
    let sql = "SELECT rolname::text FROM pg_roles WHERE rolsuper OR rolbypassrls ORDER BY 1";
    let rows = session.run(&task.cancel, session.query(sql, &[])).await?;
    let names = rows.iter().take(ROLES_MAX).map(|row| row.try_get(0));
    facts.bypassing = names.collect::<Result<_, _>>()?;
    Ok(())
}

fn has_xml(schema: &Schema) -> bool {
    let mut columns = schema.tables().flat_map(|table| &table.columns);
    columns.any(|column| matches!(column.type_name.as_str(), "xml" | "xml[]"))
}

#[cfg(test)]
mod tests {
    use steep_protocol::Identifier;
    use steep_protocol::message::schema::{
        ColumnModel, ColumnValue, Identity, SchemaPage, TableModel,
    };

    use super::*;

    #[test]
    fn a_server_is_asked_about_xml_only_for_a_source_that_has_some() {
        let with_column = |type_name: &str| {
            let column = ColumnModel {
                name: Identifier::parse("c").unwrap(),
                type_name: type_name.to_owned(),
                collation: None,
                not_null: false,
                identity: Identity::No,
                value: ColumnValue::Nothing,
            };
            let mut schema = Schema::default();
            schema.add(SchemaPage {
                tables: vec![TableModel {
                    name: TableName::new("public", "t").unwrap(),
                    fingerprint: String::new(),
                    rank: 0,
                    columns: vec![column],
                }],
                objects: Vec::new(),
            });
            schema
        };
        assert!(has_xml(&with_column("xml")) && has_xml(&with_column("xml[]")));
        assert!(!has_xml(&with_column("text")) && !has_xml(&Schema::default()));
    }
}
