//! A fake server: applies a plan's statements to a schema and rejects what PostgreSQL would. It
//! knows only the SQL of plans for [`any_schema`](crate::samples::any_schema).

use steep_protocol::message::schema::{
    ColumnModel, ColumnValue, Identity, ObjectKind, ObjectModel, TableModel,
};
use steep_protocol::{Identifier, TableName};

use crate::Schema;
use crate::diff::is_generated;
use crate::model::Key;
use crate::plan::table::column_sql;
use crate::samples::name;
use crate::text::{names, references};

/// The schema after all statements, or the first rejected one and why.
pub(super) fn run<'s>(
    mut schema: Schema,
    source: &Schema,
    statements: impl Iterator<Item = &'s str>,
) -> Result<Schema, String> {
    for sql in statements {
        let mut server = Server {
            schema: &mut schema,
            source,
        };
        server.run(sql).map_err(|why| format!("{sql}: {why}"))?;
    }
    crate::samples::settle(&mut schema);
    Ok(schema)
}

struct Server<'a> {
    schema: &'a mut Schema,
    source: &'a Schema,
}

type Outcome = Result<(), String>;

/// `"app"."t1" rest` or `"x" rest`.
fn named(text: &str) -> (String, &str) {
    let text = text.strip_prefix("\"app\".").unwrap_or(text);
    let (name, rest) = text[1..].split_once('"').unwrap();
    (name.to_owned(), rest.trim_start())
}

impl Server<'_> {
    fn run(&mut self, sql: &str) -> Outcome {
        if let Some(rest) = sql.strip_prefix("ALTER TABLE ") {
            let (table, what) = named(rest.strip_prefix("ONLY ").unwrap_or(rest));
            return self.alter(&name(&table), what);
        }
        if let Some(rest) = sql.strip_prefix("CREATE TABLE ") {
            let (table, columns) = named(rest);
            let model = self.source.table(&name(&table)).unwrap();
            let wanted: Vec<String> = model.columns.iter().map(column_sql).collect();
            assert_eq!(columns, format!("({})", wanted.join(", ")));
            self.schema.tables.insert(name(&table), model.clone());
            let identity =
                crate::samples::object(ObjectKind::ReplicaIdentity, Some(&table), "", "DEFAULT");
            self.put(identity);
            return Ok(());
        }
        if let Some(rest) = sql.strip_prefix("DROP INDEX ") {
            return self.remove(|o| o.kind == ObjectKind::Index && o.name == named(rest).0);
        }
        if let Some(rest) = sql.strip_prefix("ALTER INDEX ") {
            let (old, rest) = named(rest);
            let new = named(rest.strip_prefix("RENAME TO ").unwrap()).0;
            let found = self
                .objects()
                .find(|o| o.kind == ObjectKind::Index && o.name == old);
            let found = found.ok_or("no such index")?.clone();
            self.schema.objects.remove(&Key::of(&found));
            self.put(ObjectModel { name: new, ..found });
            return Ok(());
        }
        let rest = sql.strip_prefix("CREATE ").unwrap();
        let (unique, rest) = match rest.strip_prefix("UNIQUE ") {
            Some(rest) => ("UNIQUE ", rest),
            None => ("", rest),
        };
        let (index, rest) = named(rest.strip_prefix("INDEX ").unwrap());
        let (table, definition) = named(rest.strip_prefix("ON ").unwrap());
        self.constrain(
            &table,
            ObjectKind::Index,
            &index,
            &format!("{unique}{definition}"),
        )
    }

    fn put(&mut self, object: ObjectModel) {
        self.schema.objects.insert(Key::of(&object), object);
    }

    fn objects(&self) -> impl Iterator<Item = &ObjectModel> {
        self.schema.objects.values()
    }

    /// An object over columns, which must exist.
    fn constrain(
        &mut self,
        table: &str,
        kind: ObjectKind,
        called: &str,
        definition: &str,
    ) -> Outcome {
        let object = crate::samples::object(kind, Some(table), called, definition);
        if self.schema.has(&object) {
            return Err("it exists".to_owned());
        }
        let columns = &self.schema.tables[&name(table)].columns;
        let own = references(definition).map_or(definition, |(own, ..)| own);
        let is_column = |n: &&String| n.starts_with(['c', 'd']) && n.len() == 2;
        for used in names(own).iter().filter(is_column) {
            let column = columns.iter().find(|c| c.name.as_str() == used);
            let column = column.ok_or_else(|| format!("no column {used}"))?;
            if kind == ObjectKind::PrimaryKey && !column.not_null {
                return Err(format!("{used} may be NULL"));
            }
        }
        if kind == ObjectKind::ForeignKey && !self.objects().any(|o| is_key_of(o, table)) {
            return Err("nothing to refer to".to_owned());
        }
        self.put(object);
        Ok(())
    }

    /// Removes the matching object; an index identity goes with its index.
    fn remove(&mut self, is: impl Fn(&ObjectModel) -> bool) -> Outcome {
        let found = self
            .objects()
            .find(|o| is(o))
            .ok_or("nothing to drop")?
            .clone();
        let table = found.table.clone().unwrap();
        let refers =
            |o: &ObjectModel| o.kind == ObjectKind::ForeignKey && o.table.as_ref() == Some(&table);
        if found.kind == ObjectKind::PrimaryKey && self.objects().any(refers) {
            return Err("a foreign key needs it".to_owned());
        }
        self.schema.objects.remove(&Key::of(&found));
        let using = format!("USING INDEX \"{}\"", found.name);
        for object in self.schema.objects.values_mut() {
            if object.table.as_ref() == Some(&table) && object.definition == using {
                object.definition = "NOTHING".to_owned();
            }
        }
        Ok(())
    }

    fn alter(&mut self, table: &TableName, what: &str) -> Outcome {
        let on = table.table.as_str();
        if let Some(rest) = what.strip_prefix("ADD COLUMN ") {
            return self.add_column(table, rest);
        }
        if let Some(rest) = what.strip_prefix("DROP COLUMN ") {
            return self.drop_column(table, &named(rest).0);
        }
        if let Some(rest) = what.strip_prefix("ALTER COLUMN ") {
            let (column, what) = named(rest);
            return self.alter_column(table, &column, what);
        }
        if let Some(rest) = what.strip_prefix("ADD CONSTRAINT ") {
            let (called, definition) = named(rest);
            let kind = match definition.split(' ').next() {
                Some("PRIMARY") => ObjectKind::PrimaryKey,
                Some("FOREIGN") => ObjectKind::ForeignKey,
                Some("CHECK") => ObjectKind::Check,
                other => panic!("{other:?}"),
            };
            return self.constrain(on, kind, &called, definition);
        }
        if let Some(rest) = what.strip_prefix("DROP CONSTRAINT ") {
            let called = named(rest).0;
            let is = |o: &ObjectModel| {
                o.name == called && o.table.as_ref() == Some(table) && o.kind != ObjectKind::Index
            };
            return self.remove(is);
        }
        if let Some(how) = what.strip_prefix("REPLICA IDENTITY ") {
            if let Some(index) = how.strip_prefix("USING INDEX ") {
                let there =
                    |o: &ObjectModel| o.name == named(index).0 && o.table.as_ref() == Some(table);
                if !self.objects().any(there) {
                    return Err("no such index".to_owned());
                }
            }
            self.put(crate::samples::object(
                ObjectKind::ReplicaIdentity,
                Some(on),
                "",
                how,
            ));
            return Ok(());
        }
        if let Some(rest) = what.strip_prefix("RENAME COLUMN ") {
            let (old, rest) = named(rest);
            return self.rename_column(table, &old, &named(rest.strip_prefix("TO ").unwrap()).0);
        }
        panic!("{what}");
    }

    fn table(&mut self, table: &TableName) -> &mut TableModel {
        self.schema.tables.get_mut(table).unwrap()
    }

    fn add_column(&mut self, table: &TableName, text: &str) -> Outcome {
        let wanted = self.source.table(table).unwrap().columns.iter();
        let column = wanted
            .clone()
            .find(|c| column_sql(c) == text)
            .unwrap()
            .clone();
        let columns = &mut self.table(table).columns;
        if columns.iter().any(|c| c.name == column.name) {
            return Err("it exists".to_owned());
        }
        if is_generated(&column)
            && !columns
                .iter()
                .any(|c| c.name.as_str() == "c0" && !is_generated(c))
        {
            return Err("its base column is missing".to_owned());
        }
        columns.push(column);
        Ok(())
    }

    fn drop_column(&mut self, table: &TableName, column: &str) -> Outcome {
        let model = self.table(table);
        if is_base(model, column) {
            return Err("a column is generated from it".to_owned());
        }
        let before = model.columns.len();
        model.columns.retain(|c| c.name.as_str() != column);
        if model.columns.len() == before {
            return Err("no such column".to_owned());
        }
        // Dependent objects are dropped too.
        self.schema.objects.retain(|key, o| {
            key.table.as_ref() != Some(table) || !names(&o.definition).contains(column)
        });
        Ok(())
    }

    fn rename_column(&mut self, table: &TableName, old: &str, new: &str) -> Outcome {
        for column in &mut self.table(table).columns {
            if column.name.as_str() == old {
                column.name = Identifier::parse(new).unwrap();
            }
        }
        for object in self
            .schema
            .objects
            .values_mut()
            .filter(|o| o.table.as_ref() == Some(table))
        {
            let with = |before: char, after: char| {
                (
                    format!("{before}{old}{after}"),
                    format!("{before}{new}{after}"),
                )
            };
            for (from, to) in [with('(', ')'), with('(', ' ')] {
                object.definition = object.definition.replace(&from, &to);
            }
        }
        Ok(())
    }

    fn alter_column(&mut self, table: &TableName, column: &str, what: &str) -> Outcome {
        let refers = |o: &ObjectModel| {
            o.kind == ObjectKind::ForeignKey
                && o.table.as_ref() == Some(table)
                && names(&o.definition).contains(column)
        };
        let referred = self.objects().any(refers);
        let keyed = self
            .objects()
            .any(|o| is_key_of(o, table.table.as_str()) && names(&o.definition).contains(column));
        let model = self.table(table);
        let base = is_base(model, column);
        let found = model.columns.iter_mut().find(|c| c.name.as_str() == column);
        set(
            found.ok_or("no such column")?,
            what,
            base || referred,
            keyed,
        )
    }
}

fn is_key_of(object: &ObjectModel, table: &str) -> bool {
    object.kind == ObjectKind::PrimaryKey && object.table.as_ref() == Some(&name(table))
}

/// Whether another column is generated from it.
fn is_base(table: &TableModel, column: &str) -> bool {
    table.columns.iter().any(|c| match &c.value {
        ColumnValue::Stored(text) | ColumnValue::Virtual(text) => names(text).contains(column),
        ColumnValue::Nothing | ColumnValue::Default(_) => false,
    })
}

fn set(column: &mut ColumnModel, what: &str, needed: bool, keyed: bool) -> Outcome {
    let allowed = |allowed: bool, why: &str| if allowed { Ok(()) } else { Err(why.to_owned()) };
    let has_identity = column.identity != Identity::No;
    let has_default = matches!(column.value, ColumnValue::Default(_));
    let plain = !has_identity && !is_generated(column);
    match what {
        "SET NOT NULL" => column.not_null = true,
        "DROP NOT NULL" => {
            allowed(!has_identity && !keyed, "an identity or a key needs it")?;
            column.not_null = false;
        }
        "DROP IDENTITY" => {
            allowed(has_identity, "no identity")?;
            column.identity = Identity::No;
        }
        "DROP EXPRESSION" => {
            allowed(matches!(column.value, ColumnValue::Stored(_)), "not stored")?;
            column.value = ColumnValue::Nothing;
        }
        "DROP DEFAULT" => {
            allowed(plain, "identity or generated")?;
            column.value = ColumnValue::Nothing;
        }
        _ => {
            let how = |what: &str| match what {
                "ALWAYS" => Identity::Always,
                "BY DEFAULT" => Identity::ByDefault,
                _ => panic!("{what}"),
            };
            if let Some(value) = what.strip_prefix("SET DEFAULT ") {
                allowed(plain, "identity or generated")?;
                column.value = ColumnValue::Default(value.to_owned());
            } else if let Some(new) = what.strip_prefix("ADD GENERATED ") {
                let ready = plain && column.not_null && !has_default;
                allowed(ready, "not ready for an identity")?;
                column.identity = how(new.strip_suffix(" AS IDENTITY").unwrap());
            } else if let Some(new) = what.strip_prefix("SET GENERATED ") {
                allowed(has_identity, "no identity")?;
                column.identity = how(new);
            } else {
                let kind = what.strip_prefix("SET DATA TYPE ").unwrap();
                let kind = kind.split_once(" USING ").unwrap().0;
                allowed(!needed && !is_generated(column), "something depends on it")?;
                allowed(!has_default, "a default may not be castable")?;
                let (kind, collation) = match kind.split_once(" COLLATE ") {
                    Some((kind, collation)) => (kind, Some(collation.to_owned())),
                    None => (kind, None),
                };
                column.type_name = kind.to_owned();
                column.collation = collation;
            }
        }
    }
    Ok(())
}
