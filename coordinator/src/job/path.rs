//! The steps of a job, by its method.

use steep_protocol::message::job::Method;

use super::Step;

/// The steps of every method that copies parts.
const SNAPSHOT: [Step; 12] = [
    Step::GatherSource,
    Step::GatherTarget,
    Step::OpenSource,
    Step::PrepareTarget,
    Step::Copy,
    Step::Indexes,
    Step::Constraints,
    Step::Subscribe,
    Step::Converge,
    Step::Fold,
    Step::Prove,
    Step::Release,
];

/// Those of [`Method::Add`].
const ADD: [Step; 12] = [
    Step::GatherSource,
    Step::GatherTarget,
    Step::OpenSource,
    Step::PrepareTarget,
    Step::Copy,
    Step::Indexes,
    Step::Constraints,
    Step::Subscribe,
    Step::Converge,
    Step::Join,
    Step::Prove,
    Step::Release,
];

/// Those of [`Method::Reinit`].
const REINIT: [Step; 11] = [
    Step::GatherSource,
    Step::GatherTarget,
    Step::OpenSource,
    Step::PrepareTarget,
    Step::Copy,
    Step::ProveCopy,
    Step::Swap,
    Step::Subscribe,
    Step::Converge,
    Step::Join,
    Step::Release,
];

/// Those of [`Method::Drop`].
const DROP: [Step; 1] = [Step::Leave];

/// Those of [`Method::Load`].
const LOAD: [Step; 10] = [
    Step::GatherSource,
    Step::GatherTarget,
    Step::OpenSource,
    Step::PrepareTarget,
    Step::Copy,
    Step::Indexes,
    Step::Constraints,
    Step::Settle,
    Step::Prove,
    Step::Release,
];

/// Those of [`Method::Native`].
const NATIVE: [Step; 8] = [
    Step::GatherSource,
    Step::GatherTarget,
    Step::OpenSource,
    Step::PrepareTarget,
    Step::Subscribe,
    Step::NativeCopy,
    Step::Converge,
    Step::Release,
];

/// Those of [`Method::Backup`].
const BACKUP: [Step; 7] = [
    Step::GatherSource,
    Step::GatherTarget,
    Step::TakeSlot,
    Step::PrepareTarget,
    Step::Subscribe,
    Step::Converge,
    Step::Release,
];

/// Those of [`Method::Merge`].
const MERGE: [Step; 9] = [
    Step::GatherSource,
    Step::GatherTarget,
    Step::Apart,
    Step::OpenSource,
    Step::PrepareTarget,
    Step::Subscribe,
    Step::Converge,
    Step::Merge,
    Step::Release,
];

impl Step {
    /// The steps of a job, in order. After the last one the job has succeeded.
    #[must_use]
    pub fn path(method: Method) -> &'static [Self] {
        match method {
            Method::Snapshot | Method::TwoPhase | Method::Stored => &SNAPSHOT,
            Method::Add => &ADD,
            Method::Drop => &DROP,
            Method::Reinit => &REINIT,
            Method::Load => &LOAD,
            Method::Native => &NATIVE,
            Method::Backup => &BACKUP,
            Method::Merge => &MERGE,
        }
    }
}
