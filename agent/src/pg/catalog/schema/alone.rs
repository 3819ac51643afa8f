//! What belongs to no table: schemas, extensions, types, sequences.

use std::collections::BTreeSet;

use steep_protocol::TableName;
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::schema::{ObjectKind, ObjectModel};
use steep_schema::bounded;

use super::super::{USER_RELATION, identifier, table_name};
use super::{DEFINITION_MAX, Reader};
use crate::pg::PgError;

/// Excludes extension members, in a `WHERE`.
fn own(class: &str, oid: &str) -> String {
    format!(
        "NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{class}'::regclass \
         AND d.objid = {oid} AND d.objsubid = 0 AND d.deptype = 'e')"
    )
}

/// Selects user schemas, in a `WHERE` over `pg_namespace n`.
const USER_SCHEMA: &str =
    "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'steep_repl')";

impl Reader<'_> {
    /// Schemas, extensions, enums, domains, composite and range types.
    pub(super) async fn types(&mut self, filter: &TableFilter) -> Result<(), PgError> {
        let (own_type, own_schema) = (own("pg_type", "t.oid"), own("pg_namespace", "n.oid"));
        let sql = format!(
            r#"SELECT 'n' AS kind, 0::oid, NULL::text AS schema, n.nspname::text AS name, '' AS definition
                FROM pg_namespace n WHERE {USER_SCHEMA} AND {own_schema}
            UNION ALL SELECT 'x', 0, NULL, e.extname::text, e.extversion
                FROM pg_extension e WHERE e.extname <> 'steep_repl'
            UNION ALL SELECT t.typtype::text, t.oid, n.nspname::text, t.typname::text, CASE t.typtype
                WHEN 'e' THEN coalesce((SELECT string_agg(quote_literal(l.enumlabel), ', ' ORDER BY l.enumsortorder)
                    FROM pg_enum l WHERE l.enumtypid = t.oid), '')
                WHEN 'd' THEN concat_ws(' ', format_type(t.typbasetype, t.typtypmod),
                    (SELECT format('COLLATE %I.%I', ln.nspname, l.collname) FROM pg_type b, pg_collation l
                        JOIN pg_namespace ln ON ln.oid = l.collnamespace
                        WHERE b.oid = t.typbasetype AND b.typcollation <> t.typcollation
                        AND l.oid = t.typcollation),
                    'DEFAULT ' || pg_get_expr(t.typdefaultbin, 0), CASE WHEN t.typnotnull THEN 'NOT NULL' END,
                    (SELECT string_agg(format('CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)),
                        ' ' ORDER BY k.conname) FROM pg_constraint k
                        WHERE k.contypid = t.oid AND k.contype = 'c'))
                WHEN 'r' THEN (SELECT concat_ws(', ', 'SUBTYPE = ' || format_type(r.rngsubtype, NULL),
                    'SUBTYPE_OPCLASS = ' || (SELECT format('%I.%I', cn.nspname, o.opcname) FROM pg_opclass o
                        JOIN pg_namespace cn ON cn.oid = o.opcnamespace
                        WHERE o.oid = r.rngsubopc AND NOT o.opcdefault),
                    'COLLATION = ' || (SELECT format('%I.%I', ln.nspname, l.collname) FROM pg_type b, pg_collation l
                        JOIN pg_namespace ln ON ln.oid = l.collnamespace
                        WHERE b.oid = r.rngsubtype AND b.typcollation <> r.rngcollation
                        AND l.oid = r.rngcollation),
                    'CANONICAL = ' || nullif(r.rngcanonical::text, '-'),
                    'SUBTYPE_DIFF = ' || nullif(r.rngsubdiff::text, '-'),
                    'MULTIRANGE_TYPE_NAME = ' || (SELECT format('%I.%I', mn.nspname, m.typname) FROM pg_type m
                        JOIN pg_namespace mn ON mn.oid = m.typnamespace WHERE m.oid = r.rngmultitypid))
                    FROM pg_range r WHERE r.rngtypid = t.oid)
                ELSE (SELECT string_agg('"' || replace(a.attname, '"', '""') || '" '
                        || format_type(a.atttypid, a.atttypmod)
                        || coalesce((SELECT format(' COLLATE %I.%I', ln.nspname, l.collname) FROM pg_type b, pg_collation l
                            JOIN pg_namespace ln ON ln.oid = l.collnamespace
                            WHERE b.oid = a.atttypid AND b.typcollation <> a.attcollation
                            AND l.oid = a.attcollation), ''), ', ' ORDER BY a.attnum)
                    FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0
                    AND NOT a.attisdropped) END
                FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
                WHERE {USER_SCHEMA} AND {own_type} AND (t.typtype IN ('e', 'd', 'r') OR (t.typtype = 'c'
                    AND EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind = 'c')))"#
        );
        for row in self.session.query(&sql, &[]).await? {
            let (kind, oid): (&str, u32) = (row.try_get(0)?, row.try_get(1)?);
            let schema = row.try_get::<_, Option<String>>(2)?;
            let schema = schema.map(identifier).transpose()?;
            let name: String = row.try_get(3)?;
            let kind = match kind {
                "n" => ObjectKind::Schema,
                "x" => ObjectKind::Extension,
                "e" => ObjectKind::Enum,
                "d" => ObjectKind::Domain,
                "r" => ObjectKind::Range,
                _ => ObjectKind::Composite,
            };
            let within = match (kind, &schema) {
                // Tables use types of any schema; others are left out later.
                _ if filter.names_tables_alone() => true,
                (ObjectKind::Schema, _) => filter.reaches(&name),
                (_, Some(schema)) => filter.reaches(schema.as_str()),
                (_, None) => true,
            };
            if within {
                self.oids.push(oid);
                self.page.objects.push(ObjectModel {
                    kind,
                    table: None,
                    schema,
                    name,
                    definition: bounded(
                        row.try_get::<_, Option<String>>(4)?.unwrap_or_default(),
                        DEFINITION_MAX,
                    ),
                    rank: oid,
                });
            }
        }
        Ok(())
    }

    /// Without those of identities. One that an excluded table owns is excluded with it.
    pub(super) async fn sequences(
        &mut self,
        filter: &TableFilter,
        tables: &BTreeSet<TableName>,
    ) -> Result<(), PgError> {
        let sql = format!(
            r#"SELECT n.nspname::text, c.relname::text, format(
                'AS %s START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s %s',
                format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
                CASE WHEN s.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END),
                o.schema, o.name, o.attname
            FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
            JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN LATERAL (
                SELECT tn.nspname::text AS schema, t.relname::text AS name, a.attname::text, d.deptype
                FROM pg_depend d JOIN pg_class t ON t.oid = d.refobjid
                JOIN pg_namespace tn ON tn.oid = t.relnamespace
                JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
                AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')) AS o ON true
            WHERE o.deptype IS DISTINCT FROM 'i' AND {USER_RELATION}"#
        );
        for row in self.session.query(&sql, &[]).await? {
            let name = table_name(&row, 0)?;
            let mut definition: String = row.try_get(2)?;
            if row.try_get::<_, Option<&str>>(3)?.is_some() {
                let owner = table_name(&row, 3)?;
                if !tables.contains(&owner) {
                    continue;
                }
                let column = identifier(row.try_get(5)?)?;
                definition.push_str(&format!(" OWNED BY {}.{}", owner.quoted(), column.quoted()));
            } else if !filter.admits(&name) {
                continue;
            }
            self.page.objects.push(ObjectModel {
                kind: ObjectKind::Sequence,
                table: None,
                schema: Some(name.schema),
                name: name.table.to_string(),
                definition,
                rank: 0,
            });
        }
        Ok(())
    }

    /// What tables and types use of extensions; of arrays, their elements.
    pub(super) async fn extension_members(&mut self) -> Result<(), PgError> {
        let sql = "WITH used AS (
                SELECT DISTINCT d.refclassid AS classid,
                    coalesce((SELECT t.typelem FROM pg_type t WHERE d.refclassid = 'pg_type'::regclass
                        AND t.oid = d.refobjid AND t.typcategory = 'A' AND t.typelem <> 0), d.refobjid) AS objid
                FROM pg_depend d WHERE d.refobjid >= 16384
                AND d.classid IN ('pg_class'::regclass, 'pg_attrdef'::regclass, 'pg_constraint'::regclass,
                    'pg_type'::regclass)
                AND d.refclassid IN ('pg_type'::regclass, 'pg_proc'::regclass, 'pg_opclass'::regclass)
                AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = d.classid AND x.objid = d.objid
                    AND x.deptype = 'e')
            )
            SELECT DISTINCT n.nspname::text, coalesce(t.typname, p.proname, o.opcname)::text, e.extname::text
            FROM used
            JOIN pg_depend d ON d.classid = used.classid AND d.objid = used.objid AND d.deptype = 'e'
            JOIN pg_extension e ON e.oid = d.refobjid AND e.extname <> 'steep_repl'
            LEFT JOIN pg_type t ON used.classid = 'pg_type'::regclass AND t.oid = used.objid
            LEFT JOIN pg_proc p ON used.classid = 'pg_proc'::regclass AND p.oid = used.objid
            LEFT JOIN pg_opclass o ON used.classid = 'pg_opclass'::regclass AND o.oid = used.objid
            JOIN pg_namespace n ON n.oid = coalesce(t.typnamespace, p.pronamespace, o.opcnamespace)";
        for row in self.session.query(sql, &[]).await? {
            self.page.objects.push(ObjectModel {
                kind: ObjectKind::ExtensionMember,
                table: None,
                schema: Some(identifier(row.try_get(0)?)?),
                name: row.try_get(1)?,
                definition: row.try_get(2)?,
                rank: 0,
            });
        }
        Ok(())
    }
}
