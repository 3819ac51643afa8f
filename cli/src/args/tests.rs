//! Every command and flag of the contract parses, and others do not.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use steep_protocol::message::handover::SchemaCheck;
use steep_protocol::message::job::{
    Compression, Confirmation, ExistingRows, JobSpec, Method, SchemaMode,
};
use steep_protocol::{ByteCount, Identifier, Lsn, TableName};

use super::*;
use crate::settings::Settings;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    let words = line.split_whitespace();
    Cli::try_parse_from(std::iter::once("steep-repl").chain(words))
}

fn start(line: &str) -> StartArgs {
    match parse(line).unwrap().command {
        Some(Command::Init(init)) => init.start,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_parser_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_documented_command_parses() {
    for line in [
        "certs init --dir d",
        "certs issue --dir d --role agent --name n",
        "certs issue --dir d --role operator --name n --san h --san 10.0.0.1 --out o --days 30",
        "certs show f.pem",
        "nodes",
        "nodes --json",
        "--json nodes",
        "status",
        "status node_b --json",
        "events",
        "events node_b --follow",
        "doctor node_b node_c --from node_a",
        "doctor node_b --from node_a --schema-sync manual --include-schema app",
        "init node_b --from node_a",
        "init node_b node_c node_d --from node_a --detach",
        "init node_b --from node_a --schema-sync auto --dry-run",
        "schema compare node_a node_b",
        "schema compare node_a node_b --schemas app,shop --json",
        "schema compare node_a ./node_a.json",
        "schema diff node_a node_b app.orders",
        "schema capture --node node_a",
        "schema capture --node node_b --peer node_a",
        "schema export --node node_a --output f.json",
        "init cancel --node node_b",
        "init cancel --node node_b --keep-data --yes",
        "init prepare --node node_a --slot monday",
        "init prepare --node node_a --slot monday --expires 24h --json",
        "init prepare --node node_a --slot monday --drop",
        "init complete --node node_b --source node_a --source-lsn 16/B374D848",
        "init complete --node node_b --source node_a --source-lsn 0/1 --slot monday --schema-sync auto --force",
        "init complete --node node_b --source node_a --source-lsn 0/1 --skip-schema-check --detach --yes",
        "init complete --node node_b --source node_a --source-lsn 0/1 --dry-run --timeout 1h",
        "init adjust --node node_b --max-rate 20MB",
        "init adjust --node node_b --max-rate none --parallel 8 --json",
        "init progress --node node_b",
        "init progress --node node_b --follow --json",
        "--json init progress --node node_b",
        "switchover --from node_a --to node_b --dry-run",
        "switchover --from node_a --to node_b --reverse --verify --terminate-after 5s --max-stop 1m --max-lag 1GB --force --yes",
        "reinit --node node_b --tables app.orders,app.items --source node_a --parallel 4 --yes",
        "reinit --node node_b --schema app",
        "reinit --node node_b --full --max-rate 20MB --detach --json",
        "completions bash",
        "--coordinator h:7400 --ca a --cert c --key k --config f --log-format json nodes",
        "nodes --coordinator h:7400 --ca a --cert c --key k --config f --log-format text",
        "--print-config",
        "nodes --print-config",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn every_flag_of_init_reaches_the_job() {
    let args = start(
        "init node_b --from node_a --method native --parallel 16 --schema-sync auto --force \
         --resume --detach --timeout 1h30m --compress zstd:7 --max-rate 50MB --include-schema app \
         --include-schema \"Odd\" --exclude-table app.log --exclude-table t \
         --large-table-threshold 1GiB --yes",
    );
    assert!(args.resume && args.detach && args.yes);
    let specs = args.specs().unwrap();
    let spec = &specs[0];
    assert_eq!(
        (spec.source.as_str(), spec.target.as_str()),
        ("node_a", "node_b")
    );
    assert_eq!(spec.confirmation, Confirmation::Given);
    assert_eq!(spec.method, Method::Native);
    assert_eq!(spec.parallel, 16);
    assert_eq!(spec.schema_mode, SchemaMode::Auto);
    assert_eq!(spec.existing, ExistingRows::Replace);
    assert_eq!(spec.timeout_seconds, 5_400);
    assert_eq!(spec.compression, Compression::Zstd(7));
    assert_eq!(spec.max_rate, Some(ByteCount(50_000_000)));
    let schemas: Vec<_> = spec
        .filter
        .include_schemas
        .iter()
        .map(Identifier::as_str)
        .collect();
    assert_eq!(schemas, ["app", "Odd"]);
    let excluded = [("app", "log"), ("public", "t")].map(|(s, t)| TableName::new(s, t).unwrap());
    assert_eq!(spec.filter.exclude_tables, excluded);
    assert_eq!(spec.large_table_threshold, ByteCount(1 << 30));
}

#[test]
fn every_flag_of_complete_reaches_the_job() {
    let complete = |line: &str| match parse(line).unwrap().command {
        Some(Command::Init(init)) => match init.command {
            Some(InitCommand::Complete(args)) => args,
            other => panic!("{line}: {other:?}"),
        },
        other => panic!("{line}: {other:?}"),
    };
    let base = "init complete --node node_b --source node_a --source-lsn 16/B374D848";
    let plain = complete(base).spec(3).unwrap();
    assert_eq!(plain.source_lsn, Lsn(0x16_B374_D848));
    assert_eq!((plain.slot, plain.schema), (None, SchemaCheck::Compared));
    let job = plain.job;
    assert_eq!((job.method, job.parallel), (Method::Backup, 3));
    assert_eq!(
        (job.source.as_str(), job.target.as_str()),
        ("node_a", "node_b")
    );
    assert_eq!(job.schema_mode, SchemaMode::Strict);
    assert_eq!(job.existing, ExistingRows::Refuse);
    assert_eq!(
        (job.confirmation, job.timeout_seconds),
        (Confirmation::Needed, 86_400)
    );
    let all = complete(&format!(
        "{base} --slot monday --schema-sync auto --force --yes --timeout 90m"
    ));
    let all = all.spec(4).unwrap();
    assert_eq!(all.slot.unwrap().as_str(), "monday");
    assert_eq!(all.job.schema_mode, SchemaMode::Auto);
    assert_eq!(all.job.existing, ExistingRows::Replace);
    assert_eq!(
        (all.job.confirmation, all.job.timeout_seconds),
        (Confirmation::Given, 5_400)
    );
    let skipped = complete(&format!("{base} --skip-schema-check"))
        .spec(4)
        .unwrap();
    assert_eq!(skipped.schema, SchemaCheck::Skipped);
    let own = complete("init complete --node a --source a --source-lsn 0/1").spec(4);
    assert_eq!(own.unwrap_err().exit_code(), 2);
    match parse("init prepare --node node_a --slot monday")
        .unwrap()
        .command
    {
        Some(Command::Init(init)) => match init.command {
            Some(InitCommand::Prepare(args)) => assert_eq!(args.spec().expires_seconds, 604_800),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_snapshot_is_applied_with_replication_unless_it_is_not_wanted() {
    let specs = |line: &str| match parse(line).unwrap().command {
        Some(Command::Snapshot(SnapshotCommand::Apply(args))) => {
            let source = "node_a".parse().unwrap();
            let specs = args.specs(&source).unwrap().into_iter();
            specs.map(|spec| spec.method).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let base = "snapshot apply --target node_b node_c --input /backup/app";
    assert_eq!(specs(base), [Method::Stored; 2]);
    let alone = format!("{base} --no-subscribe --dry-run");
    assert_eq!(specs(&alone), [Method::Load; 2]);
}

#[test]
fn defaults_are_those_of_the_contract() {
    let args = start("init node_b --from node_a");
    let spec = args.specs().unwrap()[0].clone();
    assert_eq!(spec.parallel, 4);
    assert_eq!(spec.confirmation, Confirmation::Needed);
    assert_eq!(spec.method, Method::Snapshot);
    assert_eq!(spec.schema_mode, SchemaMode::Strict);
    assert_eq!(spec.existing, ExistingRows::Refuse);
    assert_eq!(spec.compression, Compression::Auto);
    assert_eq!(spec.timeout_seconds, 86_400);
    assert_eq!(spec.large_table_threshold, ByteCount(10_000_000_000));
    assert!(spec.filter.is_everything() && spec.max_rate.is_none());
    assert_eq!(spec, JobSpec::new(spec.source.clone(), spec.target.clone()));
}

#[test]
fn what_is_not_given_comes_from_the_settings() {
    let settings = Settings {
        parallel: 7,
        schema_sync: SchemaChoice::Auto,
        ..Settings::default()
    };
    let spec = |line| {
        let mut args = start(line);
        args.choices.fill(&settings);
        args.specs().unwrap()[0].clone()
    };
    let filled = spec("init node_b --from node_a");
    assert_eq!((filled.parallel, filled.schema_mode), (7, SchemaMode::Auto));
    let given = spec("init node_b --from node_a --parallel 3 --schema-sync manual");
    assert_eq!((given.parallel, given.schema_mode), (3, SchemaMode::Manual));
}

#[test]
fn what_makes_no_sense_is_refused_by_the_parser() {
    for line in [
        "init",
        "init node_b",
        "init --from node_a",
        "init Node --from node_a",
        "init node_b --from node_a --parallel 0",
        "init node_b --from node_a --parallel 17",
        "init node_b --from node_a --compress gzip",
        "init node_b --from node_a --max-rate fast",
        "init node_b --from node_a --timeout 5",
        "init node_b --from node_a --schema-sync loose",
        "init node_b --from node_a --exclude-table a.b.c",
        "init progress",
        "init adjust --node node_b",
        "init adjust --max-rate none",
        "init adjust --node node_b --parallel none",
        "init adjust --node node_b --max-rate 0",
        "init cancel",
        "init prepare --node node_a",
        "init prepare --node node_a --slot Monday",
        "init prepare --node node_a --slot a-b",
        "init complete --node node_b --source node_a",
        "init complete --node node_b --source node_a --source-lsn 16B374D848",
        "init complete --node node_b --source node_a --source-lsn 0/1 --skip-schema-check --schema-sync auto",
        "init complete --node node_b --source node_a --source-lsn 0/1 --dry-run --detach",
        "init node_b --from node_a progress --node node_b",
        "init node_b --from node_a --dry-run --detach",
        "schema",
        "schema compare node_a",
        "schema diff node_a node_b",
        "schema diff node_a node_b a.b.c",
        "schema capture",
        "schema export --node node_a",
        "certs issue --dir d --role root --name n",
        "certs issue --dir d --role agent --name n --days 0",
        "doctor --from node_a",
        "frobnicate",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
    assert_eq!(
        parse("--version").unwrap_err().kind(),
        ErrorKind::DisplayVersion
    );
    assert_eq!(parse("--help").unwrap_err().exit_code(), 0);
}

#[test]
fn what_contradicts_itself_is_a_bad_request() {
    for (line, word) in [
        ("init node_a --from node_a", "from itself"),
        ("init node_b node_c node_b --from node_a", "twice"),
    ] {
        let args = start(line);
        let failure = args.specs().unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.to_string().contains(word), "{failure}");
    }
}

#[test]
fn what_cannot_be_a_node_is_a_file() {
    let side = |text: &str| text.parse::<Side>().unwrap();
    assert!(matches!(side("node_a"), Side::Node(_)));
    for file in ["./node_a", "schema.json", "/tmp/x", "Old"] {
        assert_eq!(side(file), Side::File(file.into()));
    }
}

#[test]
fn every_command_has_examples_that_parse() {
    fn walk(command: &clap::Command, path: &str) {
        if command.get_name() == "help" {
            return;
        }
        let help = command.get_after_help().map(ToString::to_string);
        let help = help.unwrap_or_default();
        let examples: Vec<_> = help
            .lines()
            .filter_map(|line| line.strip_prefix("  steep-repl "))
            .map(|line| line.split("  ").next().unwrap_or_default())
            .map(|line| line.split(" > ").next().unwrap_or_default())
            .collect();
        let only_groups = command.is_subcommand_required_set();
        assert!(only_groups || !examples.is_empty(), "{path} has no example");
        for example in examples {
            assert!(parse(example).is_ok(), "{example}");
        }
        for inner in command.get_subcommands() {
            walk(inner, &format!("{path} {}", inner.get_name()));
        }
    }
    walk(&Cli::command(), "steep-repl");
}
