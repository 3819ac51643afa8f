use super::Dependence::{Auto, Internal, Normal};
use super::*;

fn o(class: u32, oid: u32) -> Object {
    Object { class, oid }
}

const FUNCTION: u32 = 1255;
const REWRITE: u32 = 2618;
const TRIGGER: u32 = 2620;
const APP: u32 = 1;
const UTIL: u32 = 2;

fn table(graph: &mut Graph, oid: u32, schema: u32) -> Object {
    let table = o(class::RELATION, oid);
    let relation = Relation::Table {
        partition: false,
        partitioned: false,
    };
    graph.relations.insert(oid, relation);
    graph.add(table, o(class::SCHEMA, schema), Normal);
    table
}

fn view(graph: &mut Graph, oid: u32, schema: u32, reads: Object) -> Object {
    let view = o(class::RELATION, oid);
    graph.relations.insert(oid, Relation::Other);
    graph.add(view, o(class::SCHEMA, schema), Normal);
    let rule = o(REWRITE, oid + 1000);
    graph.add(rule, view, Internal);
    graph.add(rule, reads, Normal);
    view
}

fn excluding(graph: &Graph, excluded: Object) -> Outcome {
    graph.choose(&Chosen {
        excluded: vec![excluded],
        schemas: HashSet::new(),
    })
}

#[test]
fn what_reads_an_excluded_table_is_left_out_with_what_reads_that() {
    let mut graph = Graph::default();
    let gone = table(&mut graph, 10, APP);
    let stays = table(&mut graph, 11, APP);
    let first = view(&mut graph, 12, APP, gone);
    let second = view(&mut graph, 13, APP, first);
    let other = view(&mut graph, 14, APP, stays);
    let function = o(FUNCTION, 20);
    graph.add(function, o(class::SCHEMA, APP), Normal);
    graph.add(function, second, Normal);
    let outcome = excluding(&graph, gone);
    assert_eq!(outcome.missed, [function, first, second]);
    assert!(outcome.split.is_empty());
    assert!(outcome.admits(stays) && outcome.admits(other));
    assert!(!outcome.admits(first) && !outcome.admits(gone));
}

#[test]
fn what_has_a_statement_of_its_own_goes_alone_and_what_has_none_takes_its_table_along() {
    let mut graph = Graph::default();
    let gone = table(&mut graph, 10, APP);
    let stays = table(&mut graph, 11, APP);
    let key = o(class::CONSTRAINT, 30);
    graph.add(key, stays, Auto);
    graph.add(key, gone, Normal);
    let outcome = excluding(&graph, gone);
    assert_eq!((outcome.missed, outcome.split), (vec![key], vec![]));

    let function = o(FUNCTION, 20);
    graph.add(function, gone, Normal);
    let default = o(class::DEFAULT, 31);
    graph.add(default, stays, Auto);
    graph.add(default, function, Normal);
    let outcome = excluding(&graph, gone);
    assert_eq!(outcome.split, [stays]);
    assert_eq!(outcome.missed, [function]);
}

#[test]
fn a_child_of_an_excluded_table_is_split_and_a_partition_is_not() {
    let mut graph = Graph::default();
    let parent = table(&mut graph, 10, APP);
    let child = table(&mut graph, 11, APP);
    graph.add(child, parent, Normal);
    assert_eq!(excluding(&graph, parent).split, [child]);

    let relation = |partition| Relation::Table {
        partition,
        partitioned: !partition,
    };
    graph.relations.insert(10, relation(false));
    graph.relations.insert(11, relation(true));
    let outcome = excluding(&graph, parent);
    assert!(outcome.split.is_empty() && outcome.admits(child));
}

#[test]
fn policies_are_judged_elsewhere() {
    let mut graph = Graph::default();
    let gone = table(&mut graph, 10, APP);
    let policy = o(class::POLICY, 40);
    let protected = table(&mut graph, 11, APP);
    graph.add(policy, protected, Auto);
    graph.add(policy, gone, Normal);
    let outcome = excluding(&graph, gone);
    assert!(outcome.admits(policy) && outcome.missed.is_empty());
}

#[test]
fn what_included_tables_need_comes_along_and_nothing_else() {
    let mut graph = Graph::default();
    let kept = table(&mut graph, 10, APP);
    let outside = table(&mut graph, 11, UTIL);
    let needed = o(FUNCTION, 20);
    let unneeded = o(FUNCTION, 21);
    for function in [needed, unneeded] {
        graph.add(function, o(class::SCHEMA, UTIL), Normal);
    }
    let default = o(class::DEFAULT, 31);
    graph.add(default, kept, Auto);
    graph.add(default, needed, Normal);
    let trigger = o(TRIGGER, 32);
    graph.add(trigger, kept, Auto);
    graph.add(trigger, needed, Normal);
    let outcome = graph.choose(&Chosen {
        excluded: vec![outside],
        schemas: HashSet::from([APP]),
    });
    assert_eq!(outcome.along, [needed]);
    for object in [kept, needed, default, trigger, o(class::SCHEMA, UTIL)] {
        assert!(outcome.admits(object), "{object:?}");
    }
    for object in [outside, unneeded] {
        assert!(!outcome.admits(object), "{object:?}");
    }
    let mut schemas = outcome.schemas();
    schemas.sort_unstable();
    assert_eq!(schemas, [APP, UTIL]);
}

#[test]
fn what_is_in_no_schema_asks_for_a_dump_of_everything() {
    let mut graph = Graph::default();
    let foreign = table(&mut graph, 10, APP);
    let server = o(class::SERVER, 50);
    graph.add(foreign, server, Normal);
    let outcome = graph.choose(&Chosen {
        excluded: Vec::new(),
        schemas: HashSet::from([APP]),
    });
    assert!(outcome.admits(server));
    assert!(outcome.schemas().is_empty());
}

#[test]
fn what_an_extension_made_is_the_extensions() {
    let mut graph = Graph::default();
    let kept = table(&mut graph, 10, APP);
    let type_ = o(class::TYPE, 60);
    graph.add(type_, o(class::SCHEMA, UTIL), Normal);
    graph.add(kept, type_, Normal);
    graph.members.insert(type_);
    let extension = o(class::EXTENSION, 70);
    graph.add(extension, o(class::SCHEMA, UTIL), Normal);
    let outcome = graph.choose(&Chosen {
        excluded: Vec::new(),
        schemas: HashSet::from([APP]),
    });
    assert!(outcome.along.is_empty() && !outcome.admits(type_));
    assert!(outcome.admits(extension) && outcome.admits(o(class::SCHEMA, UTIL)));
}
