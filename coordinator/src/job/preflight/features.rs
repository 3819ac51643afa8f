//! Features that the source's schema uses and the target's version or build lacks, with the objects that
//! use them. Reported before the job creates the schema; existing tables are used as they are.

use steep_protocol::message::facts::{FeatureUse, Finding, TargetFacts};
use steep_protocol::message::feature::Feature;

use super::text::{names, version};
use super::{Pair, Text, error, warning};

/// What a feature needs on the target.
enum Need {
    /// This version or a newer one.
    Version(u32),
    /// A library chosen at build time, and an alternative.
    Build {
        present: Option<bool>,
        option: &'static str,
        instead: &'static str,
    },
    /// The locale of its objects.
    Locale,
    /// It works on no other server, even if the schema exists there.
    Elsewhere,
}

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let created = pair.schema_is_created();
    let matters = |used: &&FeatureUse| created || used.feature == Feature::EnumHashPartition;
    let uses = pair.source.features.iter().filter(matters);
    findings.extend(uses.filter_map(|used| missing(pair, used)));
}

fn missing(pair: &Pair<'_>, used: &FeatureUse) -> Option<Finding> {
    let (target, node) = (pair.target, &pair.spec.target);
    let (code, what, need) = known(used.feature, target);
    let what = format!("{what} in {}", names(&used.objects));
    match need {
        Need::Version(since) if target.server.version < since => {
            let major = since / 10_000;
            let text = Text::new(
                what,
                format!(
                    "PostgreSQL {} does not know this, so these objects cannot be made as they are; {major} is the first version that can",
                    version(target.server.version)
                ),
                format!(
                    "use a target of PostgreSQL {major} or newer, change these objects, leave the tables out with --exclude-table, or create the schema on the target yourself"
                ),
            );
            Some(error(code, node, text))
        }
        Need::Build {
            present: Some(false),
            option,
            instead,
        } => {
            let text = Text::new(
                what,
                format!(
                    "this server was built without it ({option}), so these objects cannot be made"
                ),
                format!("use a server that was built {option}, or {instead}"),
            );
            Some(error(code, node, text))
        }
        Need::Locale if !has_locale(target, &used.locale) => {
            let text = Text::new(
                format!("collation {}: {what}", used.locale),
                "this server does not list that locale of its operating system: if it is missing, these objects cannot be created",
                "install the locale on the target's machine and run pg_import_system_collations('pg_catalog') there, or change the collation",
            );
            Some(warning(code, node, text))
        }
        Need::Elsewhere => {
            let text = Text::new(
                what,
                "on every other server the labels have other numbers, so a row belongs to another partition: neither its copy nor its changes fit the source's partition",
                "partition these tables by list, or by hash of another column, or leave them out with --exclude-table",
            );
            Some(error(code, node, text))
        }
        Need::Version(_) | Need::Build { .. } | Need::Locale => None,
    }
}

/// Systems spell locales differently: `de_DE.UTF-8` and `de_DE.utf8` are the same.
fn has_locale(target: &TargetFacts, locale: &str) -> bool {
    let plain = |name: &str| -> String {
        let letters = name.chars().filter(|c| *c != '-');
        letters.flat_map(char::to_lowercase).collect()
    };
    let wanted = plain(locale);
    // An empty list means that the target could not be asked.
    target.locales.is_empty() || target.locales.iter().any(|have| plain(have) == wanted)
}

/// The code of its finding, its name, and what it needs.
fn known(feature: Feature, target: &TargetFacts) -> (&'static str, &'static str, Need) {
    match feature {
        Feature::Lz4 => (
            "lz4",
            "columns with COMPRESSION lz4",
            Need::Build {
                present: target.lz4,
                option: "--with-lz4",
                instead: "ALTER TABLE … ALTER COLUMN … SET COMPRESSION pglz on the source, which concerns new values only",
            },
        ),
        Feature::IcuCollation => (
            "icu",
            "collations of the provider icu",
            Need::Build {
                present: target.icu,
                option: "--with-icu",
                instead: "leave these tables out with --exclude-table",
            },
        ),
        Feature::BuiltinCollation => (
            "target_version",
            "collations of the provider builtin",
            Need::Version(170_000),
        ),
        Feature::LibcCollation => ("locale", "columns", Need::Locale),
        Feature::EnumHashPartition => (
            "enum_hash_partition",
            "partitioning by hash of an enum",
            Need::Elsewhere,
        ),
        Feature::NullsNotDistinct => (
            "target_version",
            "NULLS NOT DISTINCT",
            Need::Version(150_000),
        ),
        Feature::SetNullColumns => (
            "target_version",
            "ON DELETE SET with a list of columns",
            Need::Version(150_000),
        ),
        Feature::SecurityInvoker => (
            "target_version",
            "views with security_invoker",
            Need::Version(150_000),
        ),
        Feature::UnloggedSequence => (
            "target_version",
            "unlogged sequences",
            Need::Version(150_000),
        ),
        Feature::PartitionedExclusion => (
            "target_version",
            "exclusion constraints of partitioned tables",
            Need::Version(170_000),
        ),
        Feature::VirtualColumn => (
            "virtual_columns",
            "virtual generated columns",
            Need::Version(180_000),
        ),
        Feature::WithoutOverlaps => (
            "target_version",
            "WITHOUT OVERLAPS or PERIOD",
            Need::Version(180_000),
        ),
        Feature::NotEnforced => (
            "target_version",
            "constraints that are NOT ENFORCED",
            Need::Version(180_000),
        ),
        Feature::NotNullDetail => (
            "target_version",
            "NOT NULL constraints that are NOT VALID, NO INHERIT, or a child's own on an inherited column",
            Need::Version(180_000),
        ),
    }
}
