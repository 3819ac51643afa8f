//! Which types mean the same in binary COPY on another server. Pure except for the query.
//!
//! Binary COPY carries OIDs inside arrays and composites, and `reg…` values are OIDs. Such values are
//! correct only where the OID is the same everywhere, that is for PostgreSQL's own, fixed ones.

use std::collections::HashMap;

use crate::pg::{PgError, Session};

/// Smaller OIDs are assigned by hand in PostgreSQL's source and the same in every version
/// (`FirstGenbkiObjectId`, `access/transam.h`).
const FIXED_OIDS_BELOW: u32 = 10_000;

/// Limit for domains over domains.
const DEPTH_MAX: u8 = 32;

/// Types with send and receive functions that are still not portable: their values are OIDs, or their
/// receive function refuses.
const NOT_PORTABLE: [&str; 16] = [
    "regproc",
    "regprocedure",
    "regoper",
    "regoperator",
    "regclass",
    "regtype",
    "regrole",
    "regnamespace",
    "regconfig",
    "regdictionary",
    "regcollation",
    "regdatabase",
    "pg_node_tree",
    "pg_ndistinct",
    "pg_dependencies",
    "pg_mcv_list",
];

#[derive(Debug, Clone)]
struct Type {
    name: String,
    form: Form,
    sendable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Base,
    Array {
        element: u32,
    },
    Domain {
        base: u32,
    },
    Enum,
    Range {
        subtype: u32,
    },
    /// Composites, pseudo-types and the rest.
    Other,
}

/// Every type that a column can have, except row types of tables.
#[derive(Debug, Default)]
pub(crate) struct Types {
    types: HashMap<u32, Type>,
}

impl Types {
    /// Leaves out row types of tables, two per table: a type that is not found is not portable.
    pub(crate) async fn load(session: &Session) -> Result<Self, PgError> {
        let sql = "SELECT t.oid, t.typname::text, t.typtype::text, t.typcategory::text, t.typelem, \
                 t.typbasetype, coalesce(r.rngsubtype, 0::oid), \
                 t.typsend::oid <> 0 AND t.typreceive::oid <> 0 \
             FROM pg_type t \
             LEFT JOIN pg_type e ON e.oid = t.typelem \
             LEFT JOIN pg_range r ON t.oid IN (r.rngtypid, r.rngmultitypid) \
             WHERE t.typtype <> 'c' AND e.typtype IS DISTINCT FROM 'c'";
        let mut types = HashMap::new();
        for row in session.query(sql, &[]).await? {
            let category: String = row.try_get(3)?;
            let form = match row.try_get::<_, String>(2)?.as_str() {
                "b" if category == "A" => Form::Array {
                    element: row.try_get(4)?,
                },
                "b" => Form::Base,
                "d" => Form::Domain {
                    base: row.try_get(5)?,
                },
                "e" => Form::Enum,
                "r" | "m" => Form::Range {
                    subtype: row.try_get(6)?,
                },
                _ => Form::Other,
            };
            let known = Type {
                name: row.try_get(1)?,
                form,
                sendable: row.try_get(7)?,
            };
            types.insert(row.try_get(0)?, known);
        }
        Ok(Self { types })
    }

    /// Whether the type's binary form means the same on any supported server.
    ///
    /// `money` does: its binary form is the stored integer, while its text depends on `lc_monetary`. Enums
    /// do: they are sent as labels. Base types of extensions do, as far as the extension's receive function
    /// accepts what its send function wrote.
    pub(crate) fn portable(&self, oid: u32) -> bool {
        self.portable_within(oid, DEPTH_MAX)
    }

    fn portable_within(&self, oid: u32, depth: u8) -> bool {
        let (Some(known), Some(depth)) = (self.types.get(&oid), depth.checked_sub(1)) else {
            return false;
        };
        if !known.sendable {
            return false;
        }
        match known.form {
            Form::Base => oid >= FIXED_OIDS_BELOW || !NOT_PORTABLE.contains(&known.name.as_str()),
            Form::Enum => true,
            Form::Domain { base } => self.portable_within(base, depth),
            Form::Array { element } => {
                element < FIXED_OIDS_BELOW && self.portable_within(element, depth)
            }
            Form::Range { subtype } => {
                subtype < FIXED_OIDS_BELOW && self.portable_within(subtype, depth)
            }
            Form::Other => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(rows: &[(u32, &str, Form)]) -> Types {
        let types = rows.iter().map(|(oid, name, form)| {
            (
                *oid,
                Type {
                    name: (*name).to_owned(),
                    form: *form,
                    sendable: *name != "aclitem",
                },
            )
        });
        Types {
            types: types.collect(),
        }
    }

    #[test]
    fn only_what_carries_no_oid_of_this_server_is_portable() {
        let types = types(&[
            (23, "int4", Form::Base),
            (1007, "_int4", Form::Array { element: 23 }),
            (2205, "regclass", Form::Base),
            (2210, "_regclass", Form::Array { element: 2205 }),
            (1033, "aclitem", Form::Base),
            (3904, "int4range", Form::Range { subtype: 23 }),
            (2249, "record", Form::Other),
            (20_000, "mood", Form::Enum),
            (20_001, "_mood", Form::Array { element: 20_000 }),
            (20_002, "positive", Form::Domain { base: 23 }),
            (20_003, "_positive", Form::Array { element: 20_002 }),
            (20_004, "hstore", Form::Base),
            (20_005, "_hstore", Form::Array { element: 20_004 }),
            (20_006, "table_ref", Form::Domain { base: 2205 }),
            (20_007, "myrange", Form::Range { subtype: 23 }),
            (20_008, "circle", Form::Domain { base: 20_008 }),
        ]);
        for portable in [23, 1007, 3904, 20_000, 20_002, 20_004, 20_007] {
            assert!(types.portable(portable), "{portable}");
        }
        for not in [
            2205, 2210, 1033, 2249, 20_001, 20_003, 20_005, 20_006, 20_008, 99,
        ] {
            assert!(!types.portable(not), "{not}");
        }
    }
}
