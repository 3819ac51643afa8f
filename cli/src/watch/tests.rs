//! The whole screen as pictures in text, and what keys do.
//!
//! The pictures are insta snapshots like those of every other output here: a changed screen is
//! looked at and accepted as a whole, and a reviewer sees it as a diff of lines.

use jiff::Timestamp;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;
use steep_protocol::message::agent::CancelledData;
use steep_protocol::message::api::{JobView, PhaseTime};
use steep_protocol::message::facts::Severity;
use steep_protocol::message::job::{
    Compression, Confirmation, ExistingRows, JobSpec, Method, SchemaMode, TableFilter,
};
use steep_protocol::{ByteCount, Fault, FaultKind, JobId, NodeId, NodeState, Phase};

use super::keys::{Effect, Input, press};
use super::model::{Focus, Link, Model, News, Pane, Question, Sort};
use super::view;
use super::view::theme::{Colours, Signs, Theme};
use crate::render::samples::{at, event, finding, id, node, progress, table};

const COLOURED: Theme = Theme {
    colours: Colours::Yes,
    signs: Signs::UNICODE,
};

const PLAIN: Theme = Theme {
    colours: Colours::No,
    signs: Signs::ASCII,
};

/// The screen as it is written to a terminal of that size.
fn terminal(model: &Model, theme: &Theme, columns: u16, lines: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    terminal
        .draw(|frame| view::draw(model, theme, frame.area(), frame.buffer_mut()))
        .unwrap();
    terminal
}

/// As text, without spaces at the ends of lines.
fn screen(model: &Model, columns: u16, lines: u16) -> String {
    let terminal = terminal(model, &COLOURED, columns, lines);
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for line in 0..lines {
        let cells = (0..columns).map(|column| buffer[(column, line)].symbol());
        let row: String = cells.collect();
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

fn spec() -> JobSpec {
    JobSpec {
        source: id("node_a"),
        target: id("node_b"),
        method: Method::Snapshot,
        parallel: 4,
        schema_mode: SchemaMode::Strict,
        existing: ExistingRows::Refuse,
        confirmation: Confirmation::Given,
        compression: Compression::Auto,
        max_rate: None,
        filter: TableFilter::default(),
        large_table_threshold: ByteCount(10_000_000_000),
        timeout_seconds: 86_400,
    }
}

fn job() -> JobView {
    let mut done = table("pgbench_branches", 100.0);
    done.rows = 100;
    done.bytes = 4_000;
    let mut pending = table("orders", 0.0);
    pending.state = steep_protocol::message::api::TableState::Pending;
    JobView {
        job_id: JobId(0xfeed),
        spec: spec(),
        operator: "dba".to_owned(),
        accepted_at: at(0),
        ended_at: None,
        phase_times: vec![
            PhaseTime {
                phase: Phase::Preflight,
                seconds: 2.5,
            },
            PhaseTime {
                phase: Phase::Snapshot,
                seconds: 0.25,
            },
            PhaseTime {
                phase: Phase::Schema,
                seconds: 3.0,
            },
        ],
        current_phase: Some((Phase::Copy, at(6))),
        findings: vec![
            finding(Severity::Info, "sequences"),
            finding(Severity::Warning, "no_replica_identity"),
        ],
        tables: vec![
            table("pgbench_accounts", 12.0),
            table("pgbench_history", 7.0),
            pending,
            done,
        ],
        end: None,
    }
}

/// A cluster in which everything happens at once.
fn cluster() -> Model {
    let mut model = Model::new("coordinator.example.net:7400", at(0));
    model.apply(News::Connected, at(20));
    let mut copying = node("node_b", NodeState::Copying);
    copying.source_node = Some(id("node_a"));
    copying.wal_held_bytes = Some(48_000_000);
    let mut following = node("node_c", NodeState::Synchronized);
    following.source_node = Some(id("node_a"));
    following.lag_bytes = Some(1_234_567);
    following.wal_held_bytes = Some(16_777_216);
    let mut failed = node("berlin-replica-2", NodeState::Failed);
    failed.source_node = Some(id("node_a"));
    failed.error_message = Some("the disk is full: could not extend file".to_owned());
    let mut away = node("node_e", NodeState::Diverged);
    away.agent_online = false;
    away.source_node = Some(id("node_a"));
    let mut down = node("node_f", NodeState::Uninitialized);
    down.postgres_error = Some("connection refused".to_owned());
    let nodes = vec![
        node("node_a", NodeState::Uninitialized),
        copying,
        following,
        failed,
        away,
        down,
    ];
    model.apply(News::Nodes(nodes), at(20));
    for second in 0..9u32 {
        let mut view = progress();
        view.throughput_bytes_sec = 85_200_000.0 - f64::from(second % 4) * 9_000_000.0;
        model.apply(News::Progress(Box::new(view)), at(21 + i64::from(second)));
    }
    for (seq, level, text) in [
        (1, "info", "node_b: preparing to copying"),
        (2, "warn", "node_a: 3 tables without replica identity"),
        (3, "info", "copying public.pgbench_accounts"),
        (4, "error", "cannot write to its disk"),
    ] {
        let mut event = event();
        event.seq = seq;
        event.timestamp = at(seq as i64);
        event.level = level.to_owned();
        event.message = text.to_owned();
        if seq == 4 {
            event.node_id = Some(id("berlin-replica-2"));
        }
        model.apply(News::Event(event), at(30));
    }
    model
}

fn opened() -> Model {
    let mut model = cluster();
    model.selected = Some(id("node_b"));
    assert_eq!(
        press(&mut model, Input::Enter),
        Some(Effect::Open(id("node_b")))
    );
    model.apply(News::Job(Box::new(job())), at(30));
    model
}

#[test]
fn the_cluster_on_a_small_screen() {
    insta::assert_snapshot!(screen(&cluster(), 80, 24));
}

#[test]
fn the_cluster_on_a_wide_screen() {
    insta::assert_snapshot!(screen(&cluster(), 160, 30));
}

#[test]
fn a_node_in_detail_on_a_small_screen() {
    insta::assert_snapshot!(screen(&opened(), 80, 24));
}

#[test]
fn a_node_in_detail_on_a_tall_screen() {
    insta::assert_snapshot!(screen(&opened(), 100, 44));
}

#[test]
fn a_node_in_detail_on_a_wide_screen() {
    insta::assert_snapshot!(screen(&opened(), 170, 40));
}

#[test]
fn findings_and_events_are_a_tab_away() {
    let mut model = opened();
    press(&mut model, Input::Tab);
    let findings = screen(&model, 80, 24);
    press(&mut model, Input::Char('3'));
    insta::assert_snapshot!(format!("{findings}\n{}", screen(&model, 80, 24)));
}

#[test]
fn a_failed_node_in_detail_says_why_and_what_next() {
    let mut model = cluster();
    model.selected = Some(id("berlin-replica-2"));
    press(&mut model, Input::Char('d'));
    let mut view = job();
    view.spec.target = id("berlin-replica-2");
    view.current_phase = None;
    view.ended_at = Some(at(12));
    let mut end = crate::render::samples::end();
    end.state = NodeState::Failed;
    end.fault = Some(Fault::new(FaultKind::Failed, "the disk is full").hint("free space there"));
    view.end = Some(Box::new(end));
    model.apply(News::Job(Box::new(view)), at(30));
    insta::assert_snapshot!(screen(&model, 80, 24));
}

#[test]
fn questions_say_what_they_will_do() {
    let mut model = opened();
    press(&mut model, Input::Char('c'));
    let cancel = screen(&model, 80, 24);
    let mut model = cluster();
    let mut asked = job();
    asked.spec.existing = ExistingRows::Replace;
    asked.spec.max_rate = Some(ByteCount(50_000_000));
    model.apply(News::Last(id("node_b"), Some(Box::new(asked))), at(30));
    insta::assert_snapshot!(format!("{cancel}\n{}", screen(&model, 80, 24)));
}

#[test]
fn help_lists_every_key() {
    let mut model = cluster();
    press(&mut model, Input::Char('?'));
    insta::assert_snapshot!(screen(&model, 80, 24));
}

#[test]
fn a_lost_coordinator_is_said_and_the_last_that_is_known_stays() {
    let mut model = cluster();
    let lost = || Fault::new(FaultKind::Unreachable, "cannot connect to the coordinator");
    model.apply(News::Lost(lost()), at(31));
    model.apply(News::Lost(lost()), at(36));
    let text = screen(&model, 80, 24);
    assert!(text.contains("reconnecting, away for 5s"), "{text}");
    assert!(text.contains("cannot connect to the coordinator"), "{text}");
    assert!(text.contains("node_b"), "{text}");
    model.apply(News::Connected, at(40));
    assert_eq!(model.link, Link::Live);
    assert!(!screen(&model, 80, 24).contains("reconnecting"));
}

#[test]
fn an_empty_cluster_says_what_to_do() {
    let mut model = Model::new("host:7400", at(0));
    assert!(screen(&model, 80, 24).contains("connecting"));
    model.apply(News::Connected, at(1));
    model.apply(News::Nodes(Vec::new()), at(1));
    assert!(screen(&model, 80, 24).contains("steep-agent run"));
    assert_eq!(press(&mut model, Input::Enter), None);
    assert_eq!(press(&mut model, Input::Char('c')), None);
    assert_eq!(press(&mut model, Input::Char('r')), None);
}

#[test]
fn without_colours_there_is_none_and_without_unicode_all_is_ascii() {
    for model in [cluster(), opened()] {
        let terminal = terminal(&model, &PLAIN, 100, 40);
        for cell in terminal.backend().buffer().content() {
            assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset), "{cell:?}");
            assert!(cell.symbol().is_ascii(), "{cell:?}");
        }
    }
}

#[test]
fn hostile_text_reaches_no_cell() {
    let hostile = "x\u{1b}[2J\u{9b}31m\r\n\u{7}\u{202e}y";
    let mut model = opened();
    let mut bad = node("node_b", NodeState::Copying);
    bad.error_message = Some(hostile.to_owned());
    bad.postgres_error = Some(hostile.to_owned());
    model.apply(News::Nodes(vec![bad]), at(30));
    let mut view = progress();
    view.current_table = Some(hostile.to_owned());
    view.tables[0].table = hostile.to_owned();
    model.apply(News::Progress(Box::new(view)), at(30));
    let mut named = job();
    named.operator = hostile.to_owned();
    named.findings[1].what = hostile.to_owned();
    named.tables[1].table = hostile.to_owned();
    model.apply(News::Job(Box::new(named)), at(30));
    let mut event = event();
    event.seq = 99;
    event.message = hostile.to_owned();
    event.level = hostile.to_owned();
    model.apply(News::Event(event), at(30));
    let fault = Fault::new(FaultKind::Failed, hostile).hint(hostile);
    model.apply(News::Answer(Err(fault)), at(30));
    let mut seen = false;
    for (columns, lines) in [(80, 24), (170, 44)] {
        for pane in Pane::ALL {
            if let Some(detail) = &mut model.detail {
                detail.pane = pane;
            }
            let text = screen(&model, columns, lines);
            seen |= text.contains("x\u{fffd}[2J");
            let odd = text
                .chars()
                .find(|c| (c.is_control() && *c != '\n') || ('\u{202a}'..='\u{202e}').contains(c));
            assert_eq!(odd, None, "{text}");
        }
    }
    assert!(seen, "the hostile text should be seen, cleaned");
}

#[test]
fn any_size_of_screen_is_drawn_without_a_panic() {
    let mut asking = opened();
    press(&mut asking, Input::Char('c'));
    let mut helping = cluster();
    press(&mut helping, Input::Char('?'));
    let mut filtering = cluster();
    press(&mut filtering, Input::Char('/'));
    for model in [cluster(), opened(), asking, helping, filtering] {
        for columns in [1, 10, 39, 40, 41, 60, 79, 149, 150, 300] {
            for lines in [1, 7, 8, 9, 12, 16, 25, 60] {
                terminal(&model, &COLOURED, columns, lines);
            }
        }
    }
}

#[test]
fn a_click_finds_the_row_that_is_drawn_there() {
    let model = cluster();
    let area = ratatui::layout::Rect::new(0, 0, 80, 24);
    let text = screen(&model, 80, 24);
    let rows = model.rows();
    let mut found = 0;
    for (line, drawn) in (0u16..).zip(text.lines()) {
        if let Some(row) = view::row_at(&model, area, line) {
            let name = rows[row].view.node_id.as_str();
            assert!(drawn.contains(name), "line {line}: {drawn:?} is not {name}");
            found += 1;
        }
    }
    assert_eq!(found, rows.len());
}

#[test]
fn more_nodes_than_lines_scroll_with_the_choice() {
    let mut model = Model::new("host:7400", at(0));
    let many = (0..200).map(|n| node(&format!("node_{n:03}"), NodeState::Synchronized));
    model.apply(News::Nodes(many.collect()), at(0));
    press(&mut model, Input::End);
    let text = screen(&model, 80, 24);
    assert!(
        text.contains("node_199") && !text.contains("node_000"),
        "{text}"
    );
    press(&mut model, Input::Home);
    assert_eq!(model.selected, Some(id("node_000")));
    press(&mut model, Input::Up(1));
    assert_eq!(model.selected, Some(id("node_000")));
    press(&mut model, Input::PageDown);
    assert_eq!(model.selected, Some(id("node_010")));
}

#[test]
fn a_filter_and_an_order_decide_what_is_shown_and_the_choice_stays() {
    let mut model = cluster();
    model.selected = Some(id("node_c"));
    press(&mut model, Input::Char('s'));
    assert_eq!(model.sort, Sort::State);
    let names = |model: &Model| -> Vec<NodeId> {
        let rows = model.rows();
        rows.iter().map(|node| node.view.node_id.clone()).collect()
    };
    assert_eq!(names(&model)[0], id("berlin-replica-2"));
    assert_eq!(model.selected_row(), Some(3));
    press(&mut model, Input::Char('S'));
    assert_eq!(names(&model).last(), Some(&id("berlin-replica-2")));
    for c in "/BERLIN".chars() {
        press(&mut model, Input::Char(c));
    }
    assert_eq!(names(&model), [id("berlin-replica-2")]);
    // The chosen node is out of sight; keys are about what is seen.
    assert_eq!(
        model.subject().unwrap().view.node_id,
        id("berlin-replica-2")
    );
    press(&mut model, Input::Enter);
    assert_eq!(model.focus, Focus::Main);
    press(&mut model, Input::Escape);
    assert_eq!(names(&model).len(), 6);
    assert_eq!(model.subject().unwrap().view.node_id, id("node_c"));
    press(&mut model, Input::Char('/'));
    press(&mut model, Input::Char('q'));
    assert_eq!(model.filter, "q", "a key for the filter is not a command");
}

#[test]
fn nothing_is_cancelled_without_a_clear_yes() {
    for (key, effect) in [
        (Input::Enter, None),
        (Input::Char(' '), None),
        (Input::Char('c'), None),
        (Input::Escape, None),
        (Input::Char('n'), None),
        (
            Input::Char('y'),
            Some(Effect::Cancel(id("node_b"), CancelledData::Remove)),
        ),
        (
            Input::Char('k'),
            Some(Effect::Cancel(id("node_b"), CancelledData::Keep)),
        ),
    ] {
        let mut model = opened();
        assert_eq!(press(&mut model, Input::Char('c')), None);
        assert!(matches!(
            model.focus,
            Focus::Question(Question::Cancel { .. })
        ));
        assert_eq!(press(&mut model, key), effect, "{key:?}");
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let mut model = cluster();
    for (name, key, text) in [
        ("node_a", 'c', "nothing to cancel"),
        ("node_c", 'c', "nothing to cancel"),
        ("node_b", 'r', "c cancels it"),
        ("node_c", 'r', "nothing to do again"),
        ("node_e", 'r', "cancel first"),
    ] {
        model.selected = Some(id(name));
        assert_eq!(press(&mut model, Input::Char(key)), None, "{name} {key}");
        let notice = model.notice.clone().unwrap().text;
        assert!(notice.contains(text), "{name} {key}: {notice}");
        assert_eq!(model.focus, Focus::Main);
    }
}

#[test]
fn again_asks_for_the_last_job_and_then_a_person() {
    let mut model = cluster();
    model.selected = Some(id("berlin-replica-2"));
    let ask = press(&mut model, Input::Char('r'));
    assert_eq!(ask, Some(Effect::AskLast(id("berlin-replica-2"))));
    model.apply(News::Last(id("berlin-replica-2"), None), at(30));
    assert!(model.notice.clone().unwrap().text.contains("--from SOURCE"));
    model.apply(News::Last(id("node_b"), Some(Box::new(job()))), at(30));
    assert_eq!(press(&mut model, Input::Enter), None, "only y starts a job");
    assert_eq!(
        press(&mut model, Input::Char('y')),
        Some(Effect::Init(Box::new(spec())))
    );
}

#[test]
fn events_are_kept_once_in_order_and_in_bounds() {
    let mut model = Model::new("host:7400", at(0));
    for seq in (1..3_000u64).rev().chain(1..3_000) {
        let mut event = event();
        event.seq = seq;
        model.apply(News::Event(event), at(0));
    }
    let seqs: Vec<_> = model.events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, (2_000..3_000).collect::<Vec<_>>());
}

#[test]
fn rates_are_sampled_once_a_second_and_bounded() {
    let mut model = cluster();
    let before = model.nodes[&id("node_b")].rates.len();
    for millis in 0..600_000i64 {
        if millis % 250 == 0 {
            let now = Timestamp::from_millisecond(at(100).as_millisecond() + millis).unwrap();
            model.apply(News::Progress(Box::new(progress())), now);
        }
    }
    let rates = &model.nodes[&id("node_b")].rates;
    assert_eq!(before, 9);
    assert_eq!(rates.len(), 400);
    assert!(rates.iter().all(|rate| *rate == 85_200_000));
}

#[test]
fn a_new_job_begins_with_no_rates_of_the_old_one() {
    let mut model = cluster();
    let mut next = progress();
    next.job_id = Some(JobId(7));
    model.apply(News::Progress(Box::new(next)), at(40));
    assert_eq!(model.nodes[&id("node_b")].rates.len(), 1);
}
