//! Claims about rows that are compared while writes are stopped.

use super::*;

#[test]
fn rows_are_compared_for_a_moment_while_writes_are_stopped_and_a_difference_ends_it() {
    let (mut one, _) = begun(WayBack::None, RowsCheck::Skipped);
    until(&mut one, Step::CompareSmall, at(10));
    let table = |name, extra| TableReport {
        rows_a: 50,
        rows_b: 50 + extra,
        extra,
        ..TableReport::new(TableName::new("app", name).unwrap())
    };
    let report = |extra| VerifyReport {
        tables: vec![table("t", extra), table("u", 0)],
        ..VerifyReport::default()
    };
    let mut late = one.clone();
    let mut equal = one.clone();
    end(&mut one, Ok(Outcome::Compared(Box::new(report(1)))), at(10));
    assert_eq!(one.step, Step::ReopenOld);
    let said = one.fault.unwrap().message;
    assert!(
        said.contains("app.t has 51 rows there and 50 on a"),
        "{said}"
    );

    end(
        &mut equal,
        Ok(Outcome::Compared(Box::new(report(0)))),
        at(10),
    );
    assert_eq!((equal.step, equal.tables_compared), (Step::ProveOpen, 2));
    assert!(equal.tables_not_compared.is_empty());

    assert_eq!(late.step(Event::Tick, at(11)), []);
    late.step(Event::Tick, at(12));
    assert_eq!((late.step, late.tables_compared), (Step::ProveOpen, 0));
    assert_eq!(late.tables_not_compared.names, ["app.t"]);
    // Its agent is asked once it is not at work on that any more.
    assert!(late.running.is_none() && late.stale.is_some());
}
