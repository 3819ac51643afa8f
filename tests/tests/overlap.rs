//! The rows that two nodes with rows of their own have in common are counted exactly.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use steep_tests::cluster::Cluster;

const SHAPE: &str = "CREATE TABLE item (id integer PRIMARY KEY, label text, price numeric(9,2));
    CREATE TABLE \"odd \"\"one\" (tenant uuid, no bigint, body text, PRIMARY KEY (tenant, no));
    CREATE TABLE log (line text);
    INSERT INTO log VALUES ('a line');";

/// Rows 1 to 3,000 there, 2,001 to 5,000 here. Of the thousand that both have, 100 differ in price and 30 of
/// these in the label too; NULL is a value like any other.
const ON_A: &str = "INSERT INTO item SELECT n, 'item ' || n, n FROM generate_series(1, 3000) AS n;
    INSERT INTO \"odd \"\"one\" SELECT md5(n::text)::uuid, n, 'body' FROM generate_series(1, 20) AS n";
const ON_B: &str = "INSERT INTO item SELECT n, 'item ' || n, n FROM generate_series(2001, 5000) AS n;
    UPDATE item SET price = NULL WHERE id BETWEEN 2001 AND 2100;
    UPDATE item SET label = 'renamed' WHERE id BETWEEN 2001 AND 2030;
    INSERT INTO \"odd \"\"one\" SELECT md5(n::text)::uuid, n, 'body' FROM generate_series(11, 40) AS n";

fn table<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    let tables = report["tables"].as_array().context("tables")?;
    let found = tables.iter().find(|table| table["table"] == name);
    found.with_context(|| format!("{name} in {report}"))
}

#[test]
fn rows_of_one_side_equal_rows_and_conflicts_are_counted_by_column() -> Result<()> {
    let cluster = Cluster::pair()?;
    for (node, rows) in [("node_a", ON_A), ("node_b", ON_B)] {
        let database = cluster.database(node);
        database.sql(SHAPE)?;
        database.sql(rows)?;
    }
    let order = ["analyze-overlap", "node_a", "node_b"];
    let all = cluster.cli(&order)?.expect(1)?.text();
    ensure!(all.contains("not counted: public.log"), "{all}");
    ensure!(
        all.contains("conflicts by column: price 100, label 30"),
        "{all}"
    );

    let named = ["--tables", "item,public.\"odd \"\"one\"", "--json"];
    let report = cluster.cli(&[&order[..], &named].concat())?.expect(0)?;
    let report = report.last_object()?;
    let item = table(&report, "item")?;
    for (key, value) in [
        ("rows_a", json!(3000)),
        ("rows_b", json!(3000)),
        ("only_a", json!(2000)),
        ("only_b", json!(2000)),
        ("equal", json!(900)),
        ("conflicts", json!(100)),
        ("conflicts_by_column", json!({"price": 100, "label": 30})),
        ("key", json!(["id"])),
        ("problem", Value::Null),
    ] {
        assert_eq!(item[key], value, "{key}: {item}");
    }
    let odd = table(&report, "odd \"one")?;
    assert_eq!(
        [
            &odd["only_a"],
            &odd["only_b"],
            &odd["equal"],
            &odd["conflicts"]
        ],
        [&json!(10), &json!(20), &json!(10), &json!(0)],
        "{odd}"
    );
    assert_eq!(report["relation"], "unrelated");
    let first = &item["examples"][0];
    ensure!(first["key"]["id"].is_string(), "{first}");

    // Seen from the other node.
    let back = [
        "analyze-overlap",
        "node_b",
        "node_a",
        "--tables",
        "item",
        "--json",
    ];
    let back = cluster.cli(&back)?.expect(0)?.last_object()?;
    let item = table(&back, "item")?;
    assert_eq!(
        [&item["only_a"], &item["conflicts_by_column"]["label"]],
        [&json!(2000), &json!(30)],
        "{item}"
    );
    Ok(())
}
