//! What keys do, and what they never do.

use steep_protocol::TableName;
use steep_protocol::message::job::ExistingRows;
use steep_protocol::message::verify::ScheduleView;

use super::*;
use crate::render::samples::{at, id, node, table};
use crate::watch::model::{Model, Update};
use crate::watch::samples::{COLOURED, cluster, drawn, job, opened, screen, spec};
use crate::watch::state::{Question, Sort};

#[test]
fn more_nodes_than_lines_scroll_with_the_choice() {
    let mut model = Model::new("host:7400", at(0));
    let many = (0..200).map(|n| node(&format!("node_{n:03}"), NodeState::Synchronized));
    model.apply(Update::Nodes(many.collect()), at(0));
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
        ("node_c", 'r', "steep-repl reinit --node node_c"),
        ("node_e", 'r', "offline"),
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
    model.apply(Update::Last(id("berlin-replica-2"), None), at(30));
    assert!(model.notice.clone().unwrap().text.contains("--from SOURCE"));
    model.apply(Update::Last(id("node_b"), Some(Box::new(job()))), at(30));
    assert_eq!(press(&mut model, Input::Enter), None, "only y starts a job");
    assert_eq!(
        press(&mut model, Input::Char('y')),
        Some(Effect::Init(Box::new(spec())))
    );
}

#[test]
fn a_diverged_node_is_cancelled_and_initialised_behind_one_question() {
    let mut model = cluster();
    let diverged = node("node_e", NodeState::Diverged);
    model.apply(Update::Nodes(vec![diverged]), at(30));
    model.selected = Some(id("node_e"));
    let ask = press(&mut model, Input::Char('r'));
    assert_eq!(ask, Some(Effect::AskLast(id("node_e"))));
    let mut last = job();
    last.spec.target = id("node_e");
    let mut spec = Box::new(last.spec.clone());
    spec.existing = ExistingRows::Replace;
    model.apply(Update::Last(id("node_e"), Some(Box::new(last))), at(30));
    let text = screen(&model, 80, 24);
    assert!(text.contains("EMPTIED FIRST"), "{text}");
    let yes = press(&mut model, Input::Char('y'));
    assert_eq!(yes, Some(Effect::Restart(spec)));
}

#[test]
fn pasted_text_is_text_for_the_filter_and_never_keys() {
    let mut model = opened();
    paste(&mut model, "cy");
    assert_eq!(model.focus, Focus::Main);
    press(&mut model, Input::Char('c'));
    paste(&mut model, "y");
    assert!(matches!(model.focus, Focus::Question(_)), "{model:?}");
    press(&mut model, Input::Escape);
    press(&mut model, Input::Escape);
    press(&mut model, Input::Char('/'));
    paste(&mut model, "no\nde\u{1b}_b");
    assert_eq!(model.filter, "node_b");
    paste(&mut model, &"x".repeat(100_000));
    assert_eq!(model.filter.chars().count(), FILTER_MAX);
}

/// Presses a key as the loop does: what drawing found out is known by then.
fn press_drawn(model: &mut Model, input: Input) -> String {
    let (_, found) = drawn(model, &COLOURED, 80, 24);
    model.drawn(found);
    press(model, input);
    screen(model, 80, 24)
}

#[test]
fn every_key_that_scrolls_moves_the_frame_until_its_ends() {
    let mut model = opened();
    let mut many = job();
    many.tables = (0..60).map(|n| table(&format!("t{n:02}"), 1.0)).collect();
    model.apply(Update::Job(Box::new(many)), at(30));
    let first = screen(&model, 80, 24);
    let end = press_drawn(&mut model, Input::Char('G'));
    assert!(end.contains("t59") && !end.contains("t00"), "{end}");
    let up = press_drawn(&mut model, Input::Char('k'));
    assert_ne!(up, end, "k after G moves");
    assert_eq!(press_drawn(&mut model, Input::Char('j')), end);
    assert_eq!(press_drawn(&mut model, Input::PageDown), end);
    assert_eq!(press_drawn(&mut model, Input::Up(1)), up);
    // What there is becomes shorter while somebody is at its end.
    press_drawn(&mut model, Input::End);
    let mut fewer = job();
    fewer.tables = (0..20).map(|n| table(&format!("t{n:02}"), 1.0)).collect();
    model.apply(Update::Job(Box::new(fewer)), at(31));
    let end = screen(&model, 80, 24);
    assert_ne!(press_drawn(&mut model, Input::Char('k')), end);
    model.apply(Update::Job(Box::new(job())), at(32));
    assert!(press_drawn(&mut model, Input::Home).contains("pgbench_accounts"));
    assert!(first.contains("t00"));
}

#[test]
fn a_diverged_node_gets_its_differing_tables_or_all_of_them_again() {
    let tables = vec![TableName::new("app", "orders").unwrap()];
    for (lost, tables) in [(false, tables), (true, Vec::new())] {
        let mut model = cluster();
        let mut diverged = node("node_e", NodeState::Diverged);
        diverged.needs_init = lost;
        diverged.verify = Some(ScheduleView {
            every_seconds: 3600,
            tables: Vec::new(),
            running: false,
            next_at: at(3600),
            last_at: Some(at(0)),
            equal: Some(false),
            message: Some("app.orders".to_owned()),
            differing: vec![TableName::new("app", "orders").unwrap()],
        });
        model.apply(Update::Nodes(vec![diverged]), at(30));
        model.selected = Some(id("node_e"));
        assert_eq!(press(&mut model, Input::Char('r')), None);
        let text = screen(&model, 80, 24);
        let says = if lost { "a new slot" } else { "app.orders" };
        assert!(text.contains(says), "{text}");
        assert_eq!(press(&mut model, Input::Enter), None, "only y copies");
        let mut other = model.clone();
        let initialise = press(&mut other, Input::Char('i'));
        assert_eq!(initialise, Some(Effect::AskLast(id("node_e"))));
        let Some(Effect::Reinit(spec)) = press(&mut model, Input::Char('y')) else {
            panic!("{model:?}");
        };
        assert_eq!((spec.node, spec.tables), (id("node_e"), tables));
    }
}
