//! What loading rows depends on.

use steep_protocol::message::facts::{
    AlteredFunction, Listed, SearchPathNeed, SettingDifference, SettingScope, Stops,
};

use super::world::{World, healthy, restored, some};
use super::{Error, Info, Warning, walk, walk_from};

fn need(stops: Stops) -> SearchPathNeed {
    SearchPathNeed {
        function: "public.looks_like_phone(t text)".to_owned(),
        names: some("digits_of"),
        schemas: "\"public\"".to_owned(),
        used_by: some("constraint fax_number of public.fax"),
        stops,
    }
}

fn setting(name: &str, scope: SettingScope, own: bool) -> SettingDifference {
    SettingDifference {
        what: format!("{name} of the database"),
        name: name.to_owned(),
        scope,
        own,
        carried: name != "work_mem",
        statement: format!("ALTER DATABASE shop SET {name} = 'x'"),
    }
}

#[test]
fn each_dependency_of_loading_is_its_own_finding() {
    walk(&[
        ("search_path_needed", Error, |w| {
            w.source.loading.search_path.push(need(Stops::Rows));
        }),
        ("search_path_unsure", Warning, |w| {
            w.source.loading.search_path.push(need(Stops::PerhapsRows));
        }),
        ("search_path_index", Warning, |w| {
            w.source.loading.search_path.push(need(Stops::Index));
        }),
        ("settings_taken_over", Info, |w| {
            w.target.owns_database = true;
            w.source.loading.sensitive = some("generated column public.t.d");
            let setting = setting("TimeZone", SettingScope::Database, false);
            w.target.settings.push(setting);
        }),
        ("settings_left", Info, |w| {
            let setting = setting("work_mem", SettingScope::Database, false);
            w.target.settings.push(setting);
        }),
        ("settings_differ", Warning, |w| {
            w.source.loading.sensitive = some("generated column public.t.d");
            let setting = setting("TimeZone", SettingScope::Server, false);
            w.target.settings.push(setting);
        }),
        ("settings_differ", Warning, |w| {
            w.target.owns_database = true;
            w.source.loading.sensitive = some("generated column public.t.d");
            let setting = setting("TimeZone", SettingScope::Database, true);
            w.target.settings.push(setting);
        }),
        ("object_names", Info, |w| {
            w.source.loading.naming_columns = some("public.t.c (regclass)");
        }),
        ("extension_rows", Warning, |w| {
            w.source.loading.extension_rows = some("cron.job (rows: 3, extension pg_cron)");
        }),
    ]);
}

#[test]
fn a_target_with_tables_runs_its_own_functions() {
    let target = |w: &mut World| w.target.user_tables = 12;
    let mut world = healthy();
    target(&mut world);
    world.source.loading.search_path.push(need(Stops::Rows));
    assert_eq!(world.judge(), []);
    walk_from(
        restored,
        &[("search_path_needed", Error, |w| {
            w.target.loading.search_path.push(need(Stops::Rows));
        })],
    );
}

#[test]
fn a_function_is_named_with_the_statement_that_fixes_it() {
    let mut world = healthy();
    world.source.loading.search_path.push(need(Stops::Rows));
    let found = world.judge();
    assert!(found[0].what.contains("fax_number") && found[0].what.contains("digits_of"));
    assert!(
        found[0].fix.contains(
            "ALTER FUNCTION public.looks_like_phone(t text) SET search_path = \"public\""
        )
    );
}

#[test]
fn a_setting_that_affects_no_value_yields_no_finding() {
    let mut world = healthy();
    let setting = setting("TimeZone", SettingScope::Server, false);
    world.target.settings.push(setting);
    assert_eq!(world.judge(), []);
}

fn altered(tables: Listed, indexes: Listed, sure: bool) -> AlteredFunction {
    AlteredFunction {
        function: "public.unaccent(text)".to_owned(),
        extension: "\"unaccent\"".to_owned(),
        schema: "\"public\"".to_owned(),
        sure,
        tables,
        indexes,
    }
}

#[test]
fn users_of_an_altered_function_of_an_extension_are_named() {
    let (column, index) = ("generated column public.t.c", "index i of public.t");
    for (tables, indexes, sure, severity, named) in [
        (some(column), Listed::default(), true, Error, column),
        (some(column), Listed::default(), false, Warning, column),
        (Listed::default(), some(index), true, Warning, index),
    ] {
        let mut world = healthy();
        let function = altered(tables, indexes, sure);
        world.source.loading.altered.push(function);
        let found = world.judge();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].code, "extension_function_altered");
        assert_eq!(found[0].severity, severity);
        assert!(found[0].what.contains(named), "{}", found[0].what);
        assert!(found[0].fix.contains(
            "CREATE EXTENSION IF NOT EXISTS \"unaccent\" WITH SCHEMA \"public\"; ALTER FUNCTION public.unaccent(text) IMMUTABLE"
        ));
        // The extension alone does not fix it.
        let installed = ("unaccent".to_owned(), "1.1".to_owned());
        world.target.server.extensions.push(installed);
        let member = "public.unaccent(text)".to_owned();
        world.target.mutable_members.push(member);
        assert_eq!(world.judge(), found);
        world.target.mutable_members.clear();
        assert_eq!(world.judge(), []);
    }
}
