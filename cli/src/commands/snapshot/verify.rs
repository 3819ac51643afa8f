//! `steep-repl snapshot verify`: reads a stored snapshot again. By its id the source's agent does, at a place this
//! command.

use std::path::{Path, PathBuf};

use steep_archive::{Archive, KeyFileError, Keys, Location};
use steep_protocol::message::api::{ApiReply, Query};
use steep_protocol::message::snapshot::{Compared, SnapshotView, VerifiedSnapshot};
use steep_protocol::{FaultKind, SnapshotId, Sum};

use super::known;
use crate::args::Stored;
use crate::commands::{Context, interrupted};
use crate::failure::{self, Failure};
use crate::render::{json, stored};
use crate::signals::Signals;
use crate::terminal::{print_folded, print_json};

/// Parts that are read at once.
const PARALLEL: usize = 4;

pub(super) async fn run(
    which: &Stored,
    key: Option<PathBuf>,
    context: &Context,
) -> Result<u8, Failure> {
    if matches!(which, Stored::Known(_)) && key.is_some() {
        let text = "--snapshot-key is for a path: with an id the agent that stored the snapshot verifies it, and uses \
                    its own key";
        return Err(Failure::bad_request(text));
    }
    let mut signals = Signals::catch()?;
    let verifying = async {
        match which {
            Stored::Known(id) => verify_known(*id, context).await,
            Stored::At(location) => verify_here(location, key.as_deref(), context).await,
        }
    };
    let verified = tokio::select! {
        verified = verifying => verified?,
        interrupt = signals.next() => return Err(interrupted(interrupt)),
    };
    if context.terminal.json {
        print_json(&json::verified(&verified));
    } else {
        print_folded(&stored::verified(&verified, context.terminal.out));
    }
    let whole = verified.problems_total == 0;
    Ok(if whole {
        failure::SUCCESS
    } else {
        failure::ERROR
    })
}

async fn verify_known(id: SnapshotId, context: &Context) -> Result<VerifiedSnapshot, Failure> {
    let client = context.client().await?;
    let replies = client
        .ask_all(Query::VerifySnapshot { snapshot: id })
        .await?;
    client.close().await;
    let verified = replies.into_iter().find_map(|reply| match reply {
        ApiReply::Verified(verified) => Some(*verified),
        _ => None,
    });
    verified.ok_or_else(|| Failure::new(FaultKind::Failed, "the coordinator did not answer"))
}

fn unusable(error: &KeyFileError) -> Failure {
    Failure::bad_request(error.to_string())
}

async fn verify_here(
    location: &Location,
    key: Option<&Path>,
    context: &Context,
) -> Result<VerifiedSnapshot, Failure> {
    let failed = |error: steep_archive::Error| Failure::new(FaultKind::Failed, error.to_string());
    let keys = match key.or(context.settings.snapshot_key.as_deref()) {
        Some(path) => Keys::load(path).map_err(|error| unusable(&error))?,
        None => Keys::default(),
    };
    let archive = Archive::open(location, &keys).await.map_err(failed)?;
    if key.is_some() {
        // Whoever names a key wants the rows to be read.
        let fits = archive.check_keys();
        fits.map_err(|error| Failure::new(FaultKind::KeyMissing, error.to_string()))?;
    }
    let manifest = archive.manifest();
    let bar = context.terminal.live.then(stored::bar);
    let total = manifest.totals.stored_bytes.0;
    let progress = |progress: steep_archive::Progress| {
        if let Some(bar) = &bar {
            bar.set_length(total);
            bar.set_position(progress.stored_bytes.0);
        }
    };
    // A coordinator that does not answer holds nothing up.
    let (verified, recorded) = tokio::join!(
        archive.verify(PARALLEL, progress),
        recorded(manifest.snapshot_id, location, context)
    );
    let verified = verified.map_err(failed)?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let mut found = VerifiedSnapshot {
        snapshot: manifest.snapshot_id,
        manifest: manifest.checksum,
        parts: verified.parts,
        rows: verified.rows.0,
        bytes: verified.bytes.0,
        unread: verified.unread,
        problems_total: verified.problems.len() as u64,
        problems: verified.problems.iter().map(ToString::to_string).collect(),
        compared: Compared::Recorded,
    };
    match recorded {
        Recorded::Manifest(written) => found.compare(written),
        Recorded::Nothing(why) => found.compared = Compared::Nothing { why },
        Recorded::Another(other) => {
            let why = format!("the coordinator has snapshot {other} recorded there");
            let id = manifest.snapshot_id;
            found.problems_total += 1;
            found
                .problems
                .push(format!("{location} holds snapshot {id}, and {why}"));
            found.compared = Compared::Nothing { why };
        }
    }
    Ok(found)
}

/// What the coordinator knows of a snapshot at a place.
enum Recorded {
    /// The checksum of its manifest.
    Manifest(Sum),
    /// Why there is none.
    Nothing(String),
    /// It has another snapshot there.
    Another(SnapshotId),
}

async fn recorded(id: SnapshotId, location: &Location, context: &Context) -> Recorded {
    let views = async {
        let client = context.client().await?;
        let views = known(&client, None, None).await?;
        client.close().await;
        Ok::<_, Failure>(views)
    };
    let views = match views.await {
        Ok(views) => views,
        Err(failure) => return Recorded::Nothing(failure::line(&failure.0)),
    };
    let (place, complete) = (Some(location.to_string()), |view: &&SnapshotView| {
        view.manifest_checksum.is_some()
    });
    let mut there = views.iter().filter(complete);
    let another = there.find(|view| view.location == place && view.snapshot_id != id);
    let own = views.iter().find(|view| view.snapshot_id == id);
    match (own, another) {
        (Some(own), _) if own.location == place => checksum(own),
        (_, Some(another)) => Recorded::Another(another.snapshot_id),
        (Some(own), None) => checksum(own),
        (None, None) => Recorded::Nothing(format!(
            "the coordinator does not know snapshot {id}: it was made in another cluster, or deleted"
        )),
    }
}

fn checksum(view: &SnapshotView) -> Recorded {
    let never = || {
        format!(
            "to the coordinator, snapshot {} is {} and was never complete",
            view.snapshot_id,
            view.state.name()
        )
    };
    view.manifest_checksum
        .map_or_else(|| Recorded::Nothing(never()), Recorded::Manifest)
}
