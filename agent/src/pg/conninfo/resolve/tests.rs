use super::super::parse::parse;
use super::*;
use proptest::prelude::*;

fn environment(vars: &[(&str, &str)]) -> Environment {
    let vars = vars
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    Environment {
        vars,
        home: None,
        user: Some("me".to_owned()),
    }
}

fn resolved(text: &str, vars: &[(&str, &str)]) -> Conninfo {
    resolve(&parse(text).unwrap(), &environment(vars)).unwrap()
}

#[test]
fn nothing_given_is_the_local_server_as_oneself() {
    let conninfo = resolved("", &[]);
    assert_eq!(conninfo.user, "me");
    assert_eq!(conninfo.database, "me");
    assert_eq!(conninfo.tls.mode, SslMode::Prefer);
    let places: Vec<_> = conninfo.endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(
        places,
        [
            "socket /var/run/postgresql/.s.PGSQL.5432",
            "socket /tmp/.s.PGSQL.5432",
            "localhost:5432"
        ]
    );
}

#[test]
fn what_is_written_goes_before_the_environment() {
    let vars = [
        ("PGHOST", "env"),
        ("PGUSER", "env"),
        ("PGPASSWORD", "env"),
        ("PGPORT", "1"),
    ];
    let conninfo = resolved("host=written user=w", &vars);
    assert_eq!(conninfo.endpoints[0].to_string(), "written:1");
    assert_eq!(conninfo.user, "w");
    assert_eq!(conninfo.password().unwrap().expose(), "env");
}

#[test]
fn several_hosts_take_their_own_ports() {
    let conninfo = resolved("host=a,/sock,b hostaddr=,,10.0.0.1 port=1,2,3", &[]);
    let places: Vec<_> = conninfo.endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(places, ["a:1", "socket /sock/.s.PGSQL.2", "b:3"]);
    for bad in [
        "host=a,b port=1,2,3",
        "host=a,b hostaddr=::1",
        "port=0",
        "port=x",
        "host=a hostaddr=b",
        "host=@x",
        "sslmode=maybe",
        "sslmode=verify-full",
        "sslmode=require sslrootcert=system",
        "sslcert=/x",
        "connect_timeout=soon",
        "target_session_attrs=master",
        "channel_binding=require",
    ] {
        assert!(
            resolve(&parse(bad).unwrap(), &environment(&[])).is_err(),
            "{bad:?} was taken"
        );
    }
}

#[test]
fn a_password_shows_only_where_it_is_asked_for() {
    let conninfo = resolved("host=h password='hunter 2'", &[]);
    for shown in [
        format!("{conninfo:?} {conninfo}"),
        conninfo.redacted(),
        conninfo.libpq_without_password(),
        format!("{:?}", conninfo.libpq()),
        format!("{:?}", conninfo.endpoints),
    ] {
        assert!(!shown.contains("hunter"), "{shown}");
    }
    assert!(conninfo.libpq().expose().ends_with("password='hunter 2'"));
}

#[test]
fn an_apply_worker_gives_a_silent_server_up_after_half_a_minute_or_the_operators_time() {
    let written = |text: &str| resolved(text, &[]).libpq().expose().to_owned();
    assert!(written("host=h").contains(" tcp_user_timeout='30000'"));
    let own = written("host=h tcp_user_timeout=5000");
    assert!(own.contains(" tcp_user_timeout='5000'"), "{own}");
    assert_eq!(own.matches("tcp_user_timeout").count(), 1, "{own}");
}

#[test]
fn each_host_has_its_own_line_in_the_password_file() {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(".pgpass");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    writeln!(
        file,
        "a:*:*:*:for-a\nb:*:*:*:for-b\nlocalhost:*:*:*:for-sockets"
    )
    .unwrap();
    let environment = Environment {
        home: Some(home.path().into()),
        ..environment(&[])
    };
    let conninfo = resolve(&parse("host=a,b,/tmp").unwrap(), &environment).unwrap();
    let passwords: Vec<_> = conninfo
        .endpoints
        .iter()
        .map(|e| e.password().unwrap())
        .collect();
    assert_eq!(passwords, ["for-a", "for-b", "for-sockets"]);
    let pinned = conninfo.pinned(&conninfo.endpoints[1]);
    assert_eq!(pinned.password().unwrap().expose(), "for-b");
}

proptest! {
    #[test]
    fn what_we_write_for_libpq_means_the_same_to_us(
        host in "[a-z/][a-z0-9.']{0,10}", user in "[^\0]{1,20}", password in "[^\0]{1,20}",
    ) {
        let text = format!(
            "host={} user={} password={} sslmode=require options='-c a=b'",
            super::super::quote(&host), super::super::quote(&user), super::super::quote(&password),
        );
        let once = resolved(&text, &[]);
        let twice = resolved(once.libpq().expose(), &[]);
        prop_assert!(once.libpq() == twice.libpq());
        prop_assert!(twice.password() == Some(Secret::new(password)));
    }
}
