//! The whole screen as pictures in text.
//!
//! The pictures are insta snapshots like those of every other output here: a changed screen is
//! looked at and accepted as a whole, and a reviewer sees it as a diff of lines.

use std::sync::LazyLock;

use proptest::prelude::*;
use ratatui::style::Color;
use steep_protocol::message::job::{ExistingRows, SchemaMode};
use steep_protocol::{ByteCount, Fault, FaultKind, NodeState};

use super::keys::{Input, press};
use super::model::{Model, Update};
use super::samples::{COLOURED, PLAIN, cluster, job, opened, screen, terminal, with_snapshots};
use super::state::Pane;
use super::view;
use crate::render::samples::{at, event, id, node, progress};

#[test]
fn the_cluster_on_a_small_screen() {
    insta::assert_snapshot!(screen(&cluster(), 80, 24));
}

#[test]
fn the_cluster_on_a_wide_screen() {
    insta::assert_snapshot!(screen(&cluster(), 160, 30));
}

#[test]
fn snapshots_are_between_nodes_and_events_and_give_way_first() {
    let model = with_snapshots();
    insta::assert_snapshot!([screen(&model, 80, 24), screen(&model, 120, 30)].join("\n"));
    for height in 8..16 {
        let small = screen(&model, 80, height);
        assert_eq!(small, screen(&cluster(), 80, height), "{height} lines");
    }
    let mut model = model;
    model.apply(Update::Snapshots(Vec::new()), at(30));
    assert_eq!(screen(&model, 80, 24), screen(&cluster(), 80, 24));
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
    model.apply(Update::Job(Box::new(view)), at(30));
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
    model.apply(Update::Last(id("node_b"), Some(Box::new(asked))), at(30));
    let again = screen(&model, 80, 24);
    let mut model = cluster();
    model.selected = Some(id("node_e"));
    let mut asked = job();
    asked.spec.target = id("node_e");
    asked.spec.schema_mode = SchemaMode::Manual;
    model.apply(Update::Last(id("node_e"), Some(Box::new(asked))), at(30));
    let diverged = screen(&model, 80, 24);
    press(&mut model, Input::Char('n'));
    press(&mut model, Input::Char('c'));
    let leave = screen(&model, 80, 24);
    insta::assert_snapshot!([cancel, again, diverged, leave].join("\n"));
}

#[test]
fn help_lists_every_key() {
    let mut model = cluster();
    press(&mut model, Input::Char('?'));
    insta::assert_snapshot!(screen(&model, 80, 24));
}

#[test]
fn an_empty_cluster_says_what_to_do() {
    let mut model = Model::new("host:7400", at(0));
    assert!(screen(&model, 80, 24).contains("connecting"));
    model.apply(Update::Connected, at(1));
    model.apply(Update::Nodes(Vec::new()), at(1));
    assert!(screen(&model, 80, 24).contains("steep-agent run"));
    assert_eq!(press(&mut model, Input::Enter), None);
    assert_eq!(press(&mut model, Input::Char('c')), None);
    assert_eq!(press(&mut model, Input::Char('r')), None);
}

#[test]
fn without_colours_there_is_none_and_without_unicode_all_is_ascii() {
    for model in [cluster(), opened(), with_snapshots()] {
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
    model.apply(Update::Nodes(vec![bad]), at(30));
    let mut view = progress();
    view.current_table = Some(hostile.to_owned());
    view.tables[0].table = hostile.to_owned();
    model.apply(Update::Progress(Box::new(view)), at(30));
    let mut named = job();
    named.operator = hostile.to_owned();
    named.findings[1].what = hostile.to_owned();
    named.tables[1].table = hostile.to_owned();
    model.apply(Update::Job(Box::new(named)), at(30));
    let mut event = event();
    event.seq = 99;
    event.message = hostile.to_owned();
    event.level = hostile.to_owned();
    model.apply(Update::Event(event), at(30));
    let fault = Fault::new(FaultKind::Failed, hostile).hint(hostile);
    model.apply(Update::Answer(Err(fault)), at(30));
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

static MOODS: LazyLock<Vec<Model>> = LazyLock::new(moods);

/// Every mood of the screen, with texts that are as bad as they can be.
fn moods() -> Vec<Model> {
    let long = "漢字 \u{1b}[2J\u{202e}x".repeat(800);
    let hostile = |mut model: Model| {
        let mut bad = node("node_b", NodeState::Copying);
        bad.error_message = Some(long.clone());
        bad.source_node = Some(id(&"s".repeat(63)));
        let named = node(&"n".repeat(63), NodeState::CatchingUp);
        model.apply(Update::Nodes(vec![bad, named]), at(30));
        let mut view = progress();
        view.current_table = Some(long.clone());
        view.tables[0].table = long.clone();
        view.overall_percent = f64::NAN;
        view.throughput_bytes_sec = f64::INFINITY;
        model.apply(Update::Progress(Box::new(view)), at(30));
        let mut named = job();
        named.operator = long.clone();
        named.findings[1].what = long.clone();
        named.findings[1].fix = long.clone();
        named.tables[1].table = long.clone();
        model.apply(Update::Job(Box::new(named)), at(30));
        let mut said = event();
        said.seq = 99;
        said.message = long.clone();
        model.apply(Update::Event(said), at(30));
        model
    };
    let mut asking = hostile(opened());
    press(&mut asking, Input::Char('c'));
    let mut again = hostile(cluster());
    let last = Update::Last(id("node_b"), Some(Box::new(job())));
    again.apply(last, at(30));
    let mut helping = cluster();
    press(&mut helping, Input::Char('?'));
    let mut filtering = cluster();
    press(&mut filtering, Input::Char('/'));
    let mut told = hostile(opened());
    told.apply(
        Update::Answer(Err(Fault::new(FaultKind::Failed, long.clone()))),
        at(30),
    );
    let mut moods = vec![cluster(), opened(), asking, again, helping, filtering];
    moods.push(hostile(cluster()));
    for pane in Pane::ALL {
        let mut model = hostile(opened());
        if let Some(detail) = &mut model.detail {
            detail.pane = pane;
            detail.scroll = usize::MAX;
        }
        moods.push(model);
    }
    moods.push(told);
    moods
}

#[test]
fn the_smallest_screens_and_the_edges_of_layouts_are_drawn_without_a_panic() {
    for model in MOODS.iter() {
        for columns in [0, 1, 39, 40, 41, 79, 149, 150, 300] {
            for lines in [0, 1, 7, 8, 9, 16, 25, 60] {
                terminal(model, &COLOURED, columns, lines);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_size_of_screen_is_drawn_without_a_panic(
        mood in 0..MOODS.len(), columns in 0..400u16, lines in 0..120u16,
    ) {
        terminal(&MOODS[mood], &PLAIN, columns, lines);
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
            // Long names are cut on a screen of this size.
            let name: String = rows[row].view.node_id.as_str().chars().take(8).collect();
            assert!(
                drawn.contains(&name),
                "line {line}: {drawn:?} is not {name}"
            );
            found += 1;
        }
    }
    assert_eq!(found, rows.len());
}
