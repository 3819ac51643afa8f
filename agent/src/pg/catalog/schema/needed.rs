//! What some tables need beside themselves: types, the schemas of these, and extensions.

use std::collections::HashSet;

use steep_protocol::Identifier;
use steep_protocol::message::schema::ObjectKind;

use super::Reader;
use crate::pg::PgError;

/// Types and extensions that the tables `$1` use, in columns, defaults, constraints and indexes, and what these use.
const NEEDED: &str = "
WITH RECURSIVE used AS (
    SELECT d.refclassid AS class, d.refobjid AS oid FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND (d.objid = ANY ($1)
            OR d.objid IN (SELECT i.indexrelid FROM pg_index i WHERE i.indrelid = ANY ($1)))
        AND d.refclassid <> 'pg_class'::regclass
    UNION
    SELECT d.refclassid, d.refobjid FROM pg_depend d
    WHERE d.classid = 'pg_attrdef'::regclass
        AND d.objid IN (SELECT x.oid FROM pg_attrdef x WHERE x.adrelid = ANY ($1))
        AND d.refclassid <> 'pg_class'::regclass
    UNION
    SELECT d.refclassid, d.refobjid FROM pg_depend d
    WHERE d.classid = 'pg_constraint'::regclass
        AND d.objid IN (SELECT k.oid FROM pg_constraint k WHERE k.conrelid = ANY ($1))
        AND d.refclassid <> 'pg_class'::regclass
    UNION
    SELECT n.class, n.oid FROM used u CROSS JOIN LATERAL (
        SELECT d.refclassid AS class, d.refobjid AS oid FROM pg_depend d
        WHERE d.classid = u.class AND d.objid = u.oid
            AND u.class IN ('pg_type'::regclass, 'pg_class'::regclass, 'pg_proc'::regclass, 'pg_opclass'::regclass)
            AND (d.refclassid <> 'pg_class'::regclass
                OR EXISTS (SELECT FROM pg_class c WHERE c.oid = d.refobjid AND c.relkind = 'c'))
        UNION ALL
        -- A composite type has its columns' types by its relation, which depends on it.
        SELECT 'pg_class'::regclass::oid, c.oid FROM pg_type t JOIN pg_class c ON c.oid = t.typrelid AND c.relkind = 'c'
        WHERE u.class = 'pg_type'::regclass AND t.oid = u.oid
    ) n
)
SELECT 't', u.oid, NULL FROM used u WHERE u.class = 'pg_type'::regclass
UNION ALL SELECT 'x', 0, e.extname::text FROM used u JOIN pg_extension e
    ON u.class = 'pg_extension'::regclass AND u.oid = e.oid";

impl Reader<'_> {
    /// Leaves out types, schemas and extensions that the tables do not need.
    pub(super) async fn drop_unneeded(&mut self) -> Result<(), PgError> {
        let tables: Vec<u32> = self.page.tables.iter().map(|table| table.rank).collect();
        let mut types = HashSet::new();
        let mut extensions = HashSet::new();
        for row in self.session.query(NEEDED, &[&tables]).await? {
            match row.try_get::<_, Option<String>>(2)? {
                Some(extension) => _ = extensions.insert(extension),
                None => _ = types.insert(row.try_get::<_, u32>(1)?),
            }
        }
        let objects = &mut self.page.objects;
        objects.retain(|object| match object.kind {
            kind if kind.is_type() => types.contains(&object.rank),
            ObjectKind::Extension => extensions.contains(&object.name),
            ObjectKind::ExtensionMember => extensions.contains(&object.definition),
            _ => true,
        });
        let of_types = objects.iter().filter(|object| object.kind.is_type());
        let mut schemas: HashSet<Identifier> = of_types
            .filter_map(|object| object.schema.clone())
            .collect();
        schemas.extend(
            self.page
                .tables
                .iter()
                .map(|table| table.name.schema.clone()),
        );
        objects.retain(|object| {
            object.kind != ObjectKind::Schema
                || schemas.iter().any(|schema| schema.as_str() == object.name)
        });
        Ok(())
    }
}
