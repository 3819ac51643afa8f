//! Features that the source's schema uses and another server may lack, by object; and the collations of a
//! target. Each question is asked only of versions whose catalog can answer it.

use std::collections::BTreeMap;

use steep_protocol::TableName;
use steep_protocol::message::facts::{FeatureUse, Listed};
use steep_protocol::message::feature::Feature;
use steep_protocol::message::job::TableFilter;

use super::content::add_text;
use crate::pg::catalog::{Partitions, USER_RELATION, identifier};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Enough for ICU and a full set of locales.
const COLLATIONS_MAX: usize = 4_096;

/// Finds the relations that use a feature.
struct Question {
    feature: Feature,
    since: u32,
    /// The detail, and what follows `FROM users c`.
    detail: &'static str,
    from: &'static str,
}

const QUESTIONS: [Question; 14] = [
    Question {
        feature: Feature::Lz4,
        since: 140_000,
        detail: "a.attname",
        from: "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
            WHERE c.relkind IN ('r', 'p', 'm') AND a.attcompression = 'l'",
    },
    Question {
        feature: Feature::IcuCollation,
        since: 140_000,
        detail: "l.collname",
        from: "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
            JOIN pg_collation l ON l.oid = a.attcollation WHERE l.collprovider = 'i'",
    },
    Question {
        feature: Feature::BuiltinCollation,
        since: 170_000,
        detail: "l.collname",
        from: "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
            JOIN pg_collation l ON l.oid = a.attcollation WHERE l.collprovider = 'b'",
    },
    Question {
        feature: Feature::LibcCollation,
        since: 140_000,
        detail: "l.collcollate",
        from: "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
            JOIN pg_collation l ON l.oid = a.attcollation \
            WHERE l.collprovider = 'c' AND l.collcollate NOT IN ('C', 'POSIX')",
    },
    Question {
        feature: Feature::NullsNotDistinct,
        since: 150_000,
        detail: "i.indexrelid::regclass::text",
        from: "JOIN pg_index i ON i.indrelid = c.oid WHERE i.indnullsnotdistinct",
    },
    Question {
        feature: Feature::SetNullColumns,
        since: 150_000,
        detail: "k.conname",
        from: "JOIN pg_constraint k ON k.conrelid = c.oid WHERE k.confdelsetcols IS NOT NULL",
    },
    Question {
        feature: Feature::SecurityInvoker,
        since: 150_000,
        detail: "''",
        from: "WHERE c.relkind = 'v' AND EXISTS (SELECT FROM unnest(c.reloptions) AS o \
            WHERE o LIKE 'security\\_invoker=%')",
    },
    Question {
        feature: Feature::UnloggedSequence,
        since: 150_000,
        detail: "''",
        from: "WHERE c.relkind = 'S' AND c.relpersistence = 'u'",
    },
    Question {
        feature: Feature::PartitionedExclusion,
        since: 170_000,
        detail: "k.conname",
        from: "JOIN pg_constraint k ON k.conrelid = c.oid WHERE c.relkind = 'p' AND k.contype = 'x'",
    },
    Question {
        feature: Feature::EnumHashPartition,
        since: 140_000,
        detail: "a.attname",
        from: "JOIN pg_partitioned_table p ON p.partrelid = c.oid AND p.partstrat = 'h' \
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (p.partattrs) \
            JOIN pg_type t ON t.oid = a.atttypid WHERE t.typtype = 'e'",
    },
    Question {
        feature: Feature::VirtualColumn,
        since: 180_000,
        detail: "a.attname",
        from: "JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped \
            WHERE c.relkind IN ('r', 'p', 'f') AND a.attgenerated = 'v'",
    },
    Question {
        feature: Feature::WithoutOverlaps,
        since: 180_000,
        detail: "k.conname",
        from: "JOIN pg_constraint k ON k.conrelid = c.oid WHERE k.conperiod",
    },
    Question {
        feature: Feature::NotEnforced,
        since: 180_000,
        detail: "k.conname",
        from: "JOIN pg_constraint k ON k.conrelid = c.oid WHERE NOT k.conenforced",
    },
    Question {
        feature: Feature::NotNullDetail,
        since: 180_000,
        detail: "k.conname",
        from: "JOIN pg_constraint k ON k.conrelid = c.oid \
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.conkey[1] \
            WHERE k.contype = 'n' AND (k.connoinherit OR NOT k.convalidated \
                OR (k.conislocal AND NOT a.attislocal AND NOT c.relispartition))",
    },
];

/// Every use that `filter` admits.
pub(super) async fn of_source(
    task: &Task,
    session: &Session,
    filter: &TableFilter,
) -> Result<Vec<FeatureUse>, PgError> {
    let sql = sql(session.server_version());
    let partitions = Partitions::load(session).await?;
    let mut uses: BTreeMap<(Feature, String), Listed> = BTreeMap::new();
    for row in session.run(&task.cancel, session.query(&sql, &[])).await? {
        let at = usize::try_from(row.try_get::<_, i32>(0)?).unwrap_or(usize::MAX);
        let Some(question) = QUESTIONS.get(at) else {
            continue;
        };
        let name = TableName {
            schema: identifier(row.try_get(1)?)?,
            table: identifier(row.try_get(2)?)?,
        };
        if !partitions.admitted(filter, &name) {
            continue;
        }
        let detail: String = row.try_get(3)?;
        let label = match detail.as_str() {
            "" => name.to_string(),
            detail => format!("{name} ({detail})"),
        };
        // The other server is searched for collations by name.
        let (key, label) = match question.feature {
            Feature::LibcCollation => (detail, name.to_string()),
            _ => (String::new(), label),
        };
        let key = (question.feature, key);
        if uses.len() < COLLATIONS_MAX || uses.contains_key(&key) {
            add_text(uses.entry(key).or_default(), label);
        }
    }
    let found = |((feature, locale), objects)| FeatureUse {
        feature,
        locale,
        objects,
    };
    Ok(uses.into_iter().map(found).collect())
}

/// One query for everything that a server of that version can answer.
fn sql(version: u32) -> String {
    let asked = QUESTIONS.iter().enumerate();
    let asked = asked.filter(|(_, question)| version >= question.since);
    let asked = asked.map(|(at, Question { detail, from, .. })| {
        format!(
            "SELECT DISTINCT {at}, c.nspname::text, c.relname::text, ({detail})::text FROM users c {from}"
        )
    });
    let mut asked: Vec<_> = asked.collect();
    let at = |feature| {
        QUESTIONS
            .iter()
            .position(|q| q.feature == feature)
            .unwrap_or(usize::MAX)
    };
    // All user collations, used or not: they come with the schema.
    asked.push(format!(
        "SELECT CASE l.collprovider WHEN 'i' THEN {} WHEN 'b' THEN {} ELSE {} END, n.nspname::text, \
             l.collname::text, CASE WHEN l.collprovider = 'c' THEN l.collcollate::text ELSE '' END \
         FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace \
         WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
         AND (l.collprovider IN ('i', 'b') OR l.collcollate NOT IN ('C', 'POSIX')) \
         AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_collation'::regclass \
             AND d.objid = l.oid AND d.deptype = 'e')",
        at(Feature::IcuCollation),
        at(Feature::BuiltinCollation),
        at(Feature::LibcCollation),
    ));
    format!(
        "WITH users AS MATERIALIZED ( \
             SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, \
                 c.reloptions, c.relispartition \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {USER_RELATION}) \
         {} ORDER BY 1, 2, 3, 4",
        asked.join(" UNION ALL ")
    )
}

#[derive(Debug)]
pub(super) struct Abilities {
    pub(super) lz4: bool,
    pub(super) icu: bool,
    /// Locales of the operating system that the server knows.
    pub(super) locales: Vec<String>,
}

/// ICU support shows in the collations that `initdb` imported.
const ABILITIES: &str = "
    SELECT coalesce((SELECT 'lz4' = ANY (enumvals) FROM pg_settings
            WHERE name = 'default_toast_compression'), false),
        EXISTS (SELECT FROM pg_collation WHERE collprovider = 'i' AND collname LIKE '%-x-icu')";

const LOCALES: &str = "
    SELECT DISTINCT collcollate::text FROM pg_collation WHERE collprovider = 'c' AND collcollate IS NOT NULL
    UNION SELECT datcollate::text FROM pg_database WHERE datname = current_database()";

pub(super) async fn of_target(task: &Task, session: &Session) -> Result<Abilities, PgError> {
    let row = session
        .run(&task.cancel, session.query_one(ABILITIES, &[]))
        .await?;
    let rows = session
        .run(&task.cancel, session.query(LOCALES, &[]))
        .await?;
    let locales = rows.iter().take(COLLATIONS_MAX).map(|row| row.try_get(0));
    Ok(Abilities {
        lz4: row.try_get(0)?,
        icu: row.try_get(1)?,
        locales: locales.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_only_what_its_catalog_knows() {
        let columns = [
            ("indnullsnotdistinct", 150_000),
            ("conperiod", 180_000),
            ("attcompression", 140_000),
        ];
        for (column, since) in columns {
            assert!(sql(since).contains(column), "{column}");
            assert!(!sql(since - 1).contains(column), "{column}");
        }
    }
}
