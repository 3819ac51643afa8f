//! The node that writes have moved away from, once somebody lets applications write to it again.

use super::*;

fn set(database: &Database, to: &str) -> Result<()> {
    let name = database.name();
    let sql = format!("BEGIN READ WRITE; ALTER DATABASE \"{name}\" {to}; COMMIT");
    database.sql(&sql).map(drop)
}

#[test]
fn rows_that_are_written_to_the_old_node_again_are_warned_of() -> Result<()> {
    let cluster = ready()?;
    let [source, _] = both(&cluster);
    completed(&cluster, &switchover(&["--reverse"]))?;
    let nodes = || -> Result<String> { Ok(cluster.cli(&["nodes"])?.expect(0)?.text()) };
    let warning = "node_a: it is no longer read-only";
    ensure!(!nodes()?.contains(warning));

    set(&source, "RESET default_transaction_read_only")?;
    wait::until_true("the warning", LIMIT, || Ok(nodes()?.contains(warning)))?;
    let status = cluster.cli(&["status", "node_a"])?.expect(0)?.text();
    let again = format!(
        "ALTER DATABASE \"{}\" SET default_transaction_read_only = on",
        source.name()
    );
    ensure!(
        status.contains(&again) && status.contains("node_a is no longer read-only"),
        "{status}"
    );
    ensure!(view(&cluster)?["lifted"] == true);
    source.sql("INSERT INTO parted (at) VALUES ('2026-07-07')")?;

    set(&source, "SET default_transaction_read_only = on")?;
    wait::until_true("the end of the warning", LIMIT, || {
        Ok(!nodes()?.contains(warning))
    })?;
    // What the warning says to do finds the row.
    let verify = cluster.cli(&["verify", "node_b", "node_a"])?.expect(3)?;
    ensure!(verify.text().contains("parted"), "{verify}");
    let events = cluster.cli(&["events", "--json"])?.expect(0)?.objects();
    let count = |name: &str| events.iter().filter(|e| e["event"] == name).count();
    let told = [
        "switchover.read_only_lifted",
        "switchover.read_only_restored",
    ];
    assert_eq!(told.map(count), [1, 1]);
    Ok(())
}
