//! The size of a copy, and its estimated duration.

use steep_protocol::ByteCount;
use steep_protocol::message::facts::{Finding, Severity};

use super::super::{Case, copy_size};
use super::world::{World, healthy};

fn size(world: &World) -> Finding {
    let case = Case {
        spec: &world.spec,
        source: &world.source,
        target: &world.target,
        handover: None,
        stored: None,
        around: &world.around,
    };
    copy_size(&case).unwrap()
}

#[test]
fn the_size_comes_with_an_estimate_that_a_rate_limit_bounds() {
    let mut world = healthy();
    let found = size(&world);
    assert_eq!(
        (found.severity, found.code.as_str()),
        (Severity::Info, "copy_size")
    );
    assert_eq!(found.what, "12 tables to copy, 50.0 GB with their indexes");
    assert_eq!(
        found.why,
        "that takes about 4 min to 17 min, at 50.0 MB/s to 250 MB/s"
    );
    world.spec.max_rate = Some(ByteCount(10_000_000));
    assert_eq!(
        size(&world).why,
        "that takes about 84 min, at no more than 10.0 MB/s (--max-rate)"
    );
    world.source.total_bytes = ByteCount(0);
    world.spec.max_rate = Some(ByteCount(0));
    assert!(size(&world).why.contains("about 1 s"));
}
