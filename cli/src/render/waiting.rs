//! What a job waits for, in one line.

use steep_protocol::message::api::{WaitingView, WaitsFor};

use super::clean;

/// `waiting for node_b's PostgreSQL, 42 s, tries again in 8 s, gives up in 29 min: why`.
pub(crate) fn waiting(view: &WaitingView) -> String {
    let node = &view.node_id;
    let mut text = match view.what {
        WaitsFor::Agent => format!("waiting for {node}'s agent"),
        WaitsFor::Postgresql => format!("waiting for {node}'s PostgreSQL"),
        WaitsFor::Retry => format!("waiting to try again on {node}"),
        WaitsFor::Subscription => format!("waiting for {node}'s subscription to connect"),
    };
    text.push_str(&format!(", {}", span(view.for_seconds)));
    if let Some(next) = view.next_try_seconds {
        text.push_str(&format!(", tries again in {}", span(next)));
    }
    text.push_str(&format!(", gives up in {}", span(view.gives_up_seconds)));
    if !view.reason.is_empty() {
        text.push_str(&format!(": {}", clean(&view.reason)));
    }
    text
}

/// As people say it: `42 s`, `29 min`, `3 h`.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::id;

    #[test]
    fn a_wait_says_for_whom_since_when_and_until_when() {
        let view = |what, next_try_seconds, reason: &str| WaitingView {
            node_id: id("node_b"),
            what,
            for_seconds: 42,
            tries: 3,
            next_try_seconds,
            gives_up_seconds: 1_758,
            reason: reason.to_owned(),
        };
        assert_eq!(
            waiting(&view(WaitsFor::Postgresql, Some(8), "")),
            "waiting for node_b's PostgreSQL, 42 s, tries again in 8 s, gives up in 29 min"
        );
        assert_eq!(
            waiting(&view(WaitsFor::Agent, None, "no session")),
            "waiting for node_b's agent, 42 s, gives up in 29 min: no session"
        );
        assert_eq!(
            waiting(&view(WaitsFor::Retry, Some(1), "reset\u{1b}[0m")),
            "waiting to try again on node_b, 42 s, tries again in 1 s, gives up in 29 min: reset\u{fffd}[0m"
        );
    }
}
