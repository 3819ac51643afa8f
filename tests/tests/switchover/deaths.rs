//! Deaths on either side of the decision.

use std::time::Instant;

use super::*;

#[test]
fn whoever_dies_before_the_decision_the_old_node_takes_writes_again() -> Result<()> {
    let mut cluster = ready()?;
    let [source, target] = both(&cluster);
    for victim in [
        "command",
        "interrupt",
        "coordinator",
        "node_b",
        "node_a",
        "nobody comes back",
    ] {
        let applications = applications(&cluster)?;
        // Keeps the switchover at the step that stops writes.
        let busy = Session::sleeping(
            &source,
            "busy",
            "BEGIN; INSERT INTO parted (at) VALUES ('2026-07-07')",
        )?;
        let limits = ["--terminate-after", "20s", "--max-stop", "22s"];
        let running = begun(&cluster, &switchover(&limits), "stop_writes")?;
        wait::until_true("writes to be stopped", LIMIT, || Ok(!writable(&source)?))?;
        let began = Instant::now();
        match victim {
            "command" => running.kill()?,
            "interrupt" => {
                running.interrupt();
                let ended = running.finish(LIMIT)?.expect(4)?;
                ensure!(ended.text().contains("interrupted, and undone"), "{ended}");
            }
            "coordinator" => {
                cluster.kill_coordinator()?;
                cluster.start_coordinator()?;
                drop(running);
            }
            "nobody comes back" => {
                cluster.kill_coordinator()?;
                drop(running);
            }
            agent => {
                cluster.kill_agent(agent)?;
                if agent == "node_b" {
                    // The old node is not held up by the other's absence.
                    drop(running);
                    wait::until_true("the old node's writes", LIMIT, || writable(&source))?;
                } else {
                    // Nobody is there who could give them back.
                    std::thread::sleep(Duration::from_secs(1));
                    ensure!(!writable(&source)?);
                    drop(running);
                }
                cluster.start_agent(agent)?;
            }
        }
        wait::until_true("the old node's writes", LIMIT, || writable(&source))
            .with_context(|| victim.to_owned())?;
        println!("{victim}: writes are back after {:?}", began.elapsed());
        if victim == "nobody comes back" {
            cluster.start_coordinator()?;
        }
        cluster.wait_online(&["node_a", "node_b"])?;
        wait::until_true("the switchover to be undone", LIMIT, || {
            Ok(step(&cluster)? == "undone" && writable(&target)?)
        })
        .with_context(|| victim.to_owned())?;
        drop(busy);
        written(&source, 20)?;
        let done = applications.stop()?;
        assert_eq!(done.missing(&source)?, [], "{victim}");
        ensure!(
            done.rows.iter().all(|row| row.port == source.port()),
            "{victim}"
        );
        no_duplicate(&done)?;
        assert_eq!(cluster.state("node_b")?, "synchronized", "{victim}");
    }
    Ok(())
}

#[test]
fn whoever_dies_after_the_decision_the_new_node_takes_writes() -> Result<()> {
    for victim in ["command", "interrupt", "coordinator", "node_a", "node_b"] {
        let mut cluster = ready()?;
        let [source, target] = both(&cluster);
        let applications = applications(&cluster)?;
        let running = begun(&cluster, &switchover(&[]), "open")?;
        match victim {
            "command" => running.kill()?,
            "interrupt" => {
                running.interrupt();
                let done = running.finish(LIMIT)?.expect(0)?.last_object()?;
                assert_eq!(done["step"], "completed", "{done}");
            }
            "coordinator" => {
                cluster.kill_coordinator()?;
                cluster.start_coordinator()?;
                drop(running);
            }
            agent => {
                cluster.kill_agent(agent)?;
                drop(running);
                cluster.start_agent(agent)?;
            }
        }
        cluster.wait_online(&["node_a", "node_b"])?;
        wait::until_true("the switchover to be completed", LIMIT, || {
            Ok(step(&cluster)? == "completed")
        })
        .with_context(|| victim.to_owned())?;
        written(&target, 20)?;
        ensure!(!writable(&source)? && writable(&target)?, "{victim}");
        let done = applications.stop()?;
        assert_eq!(done.missing(&target)?, [], "{victim}");
        no_duplicate(&done)?;
        wait::until_true("nothing of ours to be left", LIMIT, || {
            Ok(residue::of_jobs(&source)?.none().is_ok()
                && residue::of_jobs(&target)?.none().is_ok())
        })
        .with_context(|| victim.to_owned())?;
    }
    Ok(())
}
