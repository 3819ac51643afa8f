//! Certificates made by this crate, in real TLS handshakes in memory.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of #[test] functions"
)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rustls::{ClientConnection, ProtocolVersion, ServerConnection};
use rustls_pki_types::ServerName;
use steep_certs::{
    AuthorityError, Credentials, CredentialsError, FileError, Identity, IdentityError, LeafRequest,
    Role, Validity, any_coordinator, init_ca, issue, issue_with, server_name, show,
};
use tempfile::TempDir;

const ALPN: &[u8] = b"test/1";

/// A CA with an agent `node_a`, a coordinator `main` and an operator `dba`.
struct Cluster(TempDir);

impl Cluster {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        init_ca(dir.path()).unwrap();
        issue(dir.path(), Role::Agent, "node_a", &[], None).unwrap();
        issue(dir.path(), Role::Coordinator, "main", &[], None).unwrap();
        issue(dir.path(), Role::Operator, "dba", &[], None).unwrap();
        Self(dir)
    }

    fn load(&self, name: &str) -> Result<Credentials, CredentialsError> {
        let at = |file: &str| self.0.path().join(file);
        Credentials::load(
            &at("ca.pem"),
            &at(&format!("{name}.pem")),
            &at(&format!("{name}.key")),
        )
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Runs a handshake to its end; the error is of whichever end refused.
fn shake(
    client: &Credentials,
    server: &Credentials,
    name: ServerName<'static>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let client = Arc::new(client.client_config(ALPN).unwrap());
    let server = Arc::new(server.server_config(ALPN).unwrap());
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    run(&mut client, &mut server)?;
    Ok((client, server))
}

fn run(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), rustls::Error> {
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut bytes.as_slice()).unwrap();
        server.process_new_packets()?;
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut bytes.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn both_ends_learn_who_the_other_is() {
    let cluster = Cluster::new();
    let (operator, agent) = (
        cluster.load("dba").unwrap(),
        cluster.load("node_a").unwrap(),
    );
    let (client, server) = shake(&operator, &agent, server_name(Role::Agent, "node_a")).unwrap();
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.alpn_protocol(), Some(ALPN));
    let seen = Identity::from_certificate(&server.peer_certificates().unwrap()[0]).unwrap();
    assert_eq!(&seen, operator.identity());
    let seen = Identity::from_certificate(&client.peer_certificates().unwrap()[0]).unwrap();
    assert_eq!(&seen, agent.identity());
}

#[test]
fn a_coordinator_is_known_by_its_role_and_nobody_else_passes_for_one() {
    let cluster = Cluster::new();
    let operator = cluster.load("dba").unwrap();
    let coordinator = cluster.load("main").unwrap();
    shake(&operator, &coordinator, any_coordinator()).unwrap();
    shake(
        &operator,
        &coordinator,
        server_name(Role::Coordinator, "main"),
    )
    .unwrap();
    assert!(
        shake(
            &operator,
            &cluster.load("node_a").unwrap(),
            any_coordinator()
        )
        .is_err()
    );
}

#[test]
fn another_node_is_refused_by_the_client() {
    let cluster = Cluster::new();
    let (operator, agent) = (
        cluster.load("dba").unwrap(),
        cluster.load("node_a").unwrap(),
    );
    for wrong in [
        server_name(Role::Agent, "node_b"),
        server_name(Role::Coordinator, "node_a"),
        server_name(Role::Agent, "not a name"),
    ] {
        let refused = shake(&operator, &agent, wrong).unwrap_err();
        assert!(
            matches!(refused, rustls::Error::InvalidCertificate(_)),
            "{refused}"
        );
    }
}

#[test]
fn names_with_every_allowed_character_are_verified() {
    let cluster = Cluster::new();
    let operator = cluster.load("dba").unwrap();
    for name in ["a_b-c9", "a-", "a---", &format!("{}--", "x".repeat(61))] {
        issue(cluster.path(), Role::Agent, name, &[], None).unwrap();
        let agent = cluster.load(name).unwrap();
        shake(&operator, &agent, server_name(Role::Agent, name)).unwrap();
        assert!(shake(&operator, &agent, server_name(Role::Agent, "a")).is_err());
    }
}

#[test]
fn another_ca_is_refused_by_either_end() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let name = || server_name(Role::Agent, "node_a");
    let (dba, node) = (ours.load("dba").unwrap(), ours.load("node_a").unwrap());
    let (their_dba, their_node) = (theirs.load("dba").unwrap(), theirs.load("node_a").unwrap());
    assert!(shake(&dba, &their_node, name()).is_err());
    assert!(shake(&their_dba, &node, name()).is_err());
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let cluster = Cluster::new();
    let agent = cluster.load("node_a").unwrap();
    let mut config = cluster.load("dba").unwrap().client_config(ALPN).unwrap();
    struct Nothing;
    impl rustls::client::ResolvesClientCert for Nothing {
        fn resolve(
            &self,
            _: &[&[u8]],
            _: &[rustls::SignatureScheme],
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            None
        }
        fn has_certs(&self) -> bool {
            false
        }
    }
    impl std::fmt::Debug for Nothing {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Nothing")
        }
    }
    config.client_auth_cert_resolver = Arc::new(Nothing);
    let name = server_name(Role::Agent, "node_a");
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(agent.server_config(ALPN).unwrap())).unwrap();
    let refused = run(&mut client, &mut server).unwrap_err();
    assert_eq!(refused, rustls::Error::NoCertificatesPresented);
}

#[test]
fn an_expired_certificate_is_refused_where_it_is_loaded() {
    let cluster = Cluster::new();
    let now = Timestamp::now();
    let hours = SignedDuration::from_hours;
    let issue_for = |name: &str, not_before, not_after| {
        let request = LeafRequest {
            identity: Identity::new(Role::Agent, name).unwrap(),
            sans: Vec::new(),
            validity: Some(Validity {
                not_before,
                not_after,
            }),
        };
        issue_with(cluster.path(), &request, None).unwrap();
    };
    issue_for("old", now - hours(48), now - hours(24));
    issue_for("early", now + hours(24), now + hours(48));
    let old = cluster.load("old").unwrap_err();
    assert!(matches!(old, CredentialsError::Expired { .. }), "{old}");
    let early = cluster.load("early").unwrap_err();
    assert!(
        matches!(early, CredentialsError::NotYetValid { .. }),
        "{early}"
    );
}

#[test]
fn nothing_is_ever_overwritten_and_the_error_names_the_file() {
    let cluster = Cluster::new();
    let before = fs::read(cluster.path().join("node_a.key")).unwrap();
    let ca = init_ca(cluster.path()).unwrap_err().to_string();
    assert!(ca.contains("ca.pem exists already"), "{ca}");
    let leaf = issue(cluster.path(), Role::Operator, "node_a", &[], None).unwrap_err();
    assert!(
        leaf.to_string().contains("node_a.pem exists already"),
        "{leaf}"
    );
    // One of the two is enough to refuse, and neither is touched.
    fs::remove_file(cluster.path().join("node_a.pem")).unwrap();
    let half = issue(cluster.path(), Role::Agent, "node_a", &[], None).unwrap_err();
    assert!(
        matches!(half, AuthorityError::File(FileError::Exists { .. })),
        "{half}"
    );
    assert!(!cluster.path().join("node_a.pem").exists());
    assert_eq!(fs::read(cluster.path().join("node_a.key")).unwrap(), before);
}

#[test]
fn keys_are_private_from_the_start() {
    let cluster = Cluster::new();
    for file in ["ca.key", "node_a.key"] {
        let mode = fs::metadata(cluster.path().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let exposed = cluster.path().join("node_a.key");
    fs::set_permissions(&exposed, Permissions::from_mode(0o644)).unwrap();
    let refused = cluster.load("node_a").unwrap_err();
    assert!(
        matches!(refused, CredentialsError::File(FileError::Exposed { .. })),
        "{refused}"
    );
    let ca = cluster.path().join("ca.key");
    fs::set_permissions(&ca, Permissions::from_mode(0o644)).unwrap();
    assert!(issue(cluster.path(), Role::Agent, "node_c", &[], None).is_err());
}

#[test]
fn hostile_names_leave_no_file() {
    let cluster = Cluster::new();
    let count = || fs::read_dir(cluster.path()).unwrap().count();
    let before = count();
    for bad in [
        "",
        "../x",
        "a/b",
        "A",
        "a b",
        "ca",
        "a\0",
        "-x",
        &"x".repeat(64),
    ] {
        assert!(
            issue(cluster.path(), Role::Agent, bad, &[], None).is_err(),
            "{bad:?} was taken"
        );
    }
    for bad in [
        "",
        "*",
        "*.example.org",
        "a b",
        "a/b",
        "node_b.agent.steep-repl.internal",
        "x.STEEP-REPL.internal.",
        "1.2.3",
        "10.0.0.0/8",
    ] {
        let sans = [bad.to_owned()];
        assert!(
            issue(cluster.path(), Role::Agent, "x", &sans, None).is_err(),
            "{bad:?} was taken"
        );
    }
    assert_eq!(count(), before);
}

#[test]
fn a_certificate_shows_what_was_asked_for() {
    let cluster = Cluster::new();
    let sans = ["db.example.org", "10.1.2.3", "::1", "10.1.2.3"].map(str::to_owned);
    let files = issue(cluster.path(), Role::Coordinator, "c1", &sans, None).unwrap();
    let info = show(&files.certificate).unwrap();
    assert_eq!(
        info.identity,
        Some(Identity::new(Role::Coordinator, "c1").unwrap())
    );
    assert_eq!(
        info.dns_names,
        [
            "c1.coordinator.steep-repl.internal",
            "coordinator.steep-repl.internal",
            "db.example.org"
        ]
    );
    let addresses: Vec<_> = info.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.2.3", "::1"]);
    assert!(!info.is_ca && info.is_valid_at(Timestamp::now()));
    let days = info
        .validity
        .not_after
        .duration_since(Timestamp::now())
        .as_hours()
        / 24;
    assert!((823..=825).contains(&days), "{days} days");

    let ca = show(&files.ca).unwrap();
    assert!(ca.is_ca && ca.identity.is_none());
    assert_eq!(ca.subject, info.issuer);
    let key = show(&files.key).unwrap_err().to_string();
    assert!(key.contains("it is a private key"), "{key}");
}

#[test]
fn a_leaf_never_outlives_its_ca() {
    let cluster = Cluster::new();
    let request = LeafRequest {
        identity: Identity::new(Role::Agent, "long").unwrap(),
        sans: Vec::new(),
        validity: Some(Validity::days_from_now(100_000)),
    };
    let files = issue_with(cluster.path(), &request, None).unwrap();
    let (leaf, ca) = (show(&files.certificate).unwrap(), show(&files.ca).unwrap());
    assert_eq!(leaf.validity.not_after, ca.validity.not_after);
    cluster.load("long").unwrap();
}

#[test]
fn another_output_directory_gets_all_a_process_needs_and_no_ca_key() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let out = cluster.path().join("out/node_b");
    let files = issue(cluster.path(), Role::Agent, "node_b", &[], Some(&out)).unwrap();
    Credentials::load(&files.ca, &files.certificate, &files.key).unwrap();
    assert!(!out.join("ca.key").exists());
    issue(cluster.path(), Role::Agent, "node_c", &[], Some(&out)).unwrap();
    let mixed = issue(other.path(), Role::Agent, "node_d", &[], Some(&out)).unwrap_err();
    assert!(
        matches!(mixed, AuthorityError::OtherAuthority(_)),
        "{mixed}"
    );
}

#[test]
fn files_that_do_not_belong_together_are_told_apart() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (a, b) = (ours.path(), theirs.path());
    let load = Credentials::load;
    let wrong = load(&a.join("ca.pem"), &a.join("dba.pem"), &a.join("node_a.key")).unwrap_err();
    assert!(
        matches!(wrong, CredentialsError::WrongKey { .. }),
        "{wrong}"
    );
    let wrong = load(&b.join("ca.pem"), &a.join("dba.pem"), &a.join("dba.key")).unwrap_err();
    assert!(
        matches!(wrong, CredentialsError::OtherAuthority { .. }),
        "{wrong}"
    );
    let wrong = load(&a.join("dba.pem"), &a.join("dba.pem"), &a.join("dba.key")).unwrap_err();
    assert!(
        matches!(wrong, CredentialsError::NotAnAuthority { .. }),
        "{wrong}"
    );
    let wrong = load(&a.join("ca.pem"), &a.join("ca.pem"), &a.join("ca.key")).unwrap_err();
    assert!(
        matches!(
            wrong,
            CredentialsError::Identity {
                source: IdentityError::None,
                ..
            }
        ),
        "{wrong}"
    );
    let wrong = load(&a.join("ca.pem"), &a.join("dba.key"), &a.join("dba.key")).unwrap_err();
    assert!(
        matches!(wrong, CredentialsError::NoCertificate { .. }),
        "{wrong}"
    );
    let wrong = load(&a.join("ca.pem"), &a.join("dba.pem"), &a.join("gone")).unwrap_err();
    assert!(wrong.to_string().contains("gone"), "{wrong}");
    // The CA's own files, mixed up.
    fs::remove_file(a.join("ca.key")).unwrap();
    fs::copy(b.join("ca.key"), a.join("ca.key")).unwrap();
    let wrong = issue(a, Role::Agent, "x", &[], None).unwrap_err();
    assert!(matches!(wrong, AuthorityError::WrongKey(_)), "{wrong}");
}

#[test]
fn a_directory_without_a_ca_says_what_to_run() {
    let dir = tempfile::tempdir().unwrap();
    let error = issue(dir.path(), Role::Agent, "a", &[], None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("certs init --dir"), "{error}");
}

#[test]
fn neither_key_nor_path_of_it_is_in_debug_output() {
    let cluster = Cluster::new();
    let text = format!("{:?}", cluster.load("dba").unwrap());
    assert!(
        text.contains("dba") && !text.to_lowercase().contains("key"),
        "{text}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_in_any_file_are_an_error(bytes: Vec<u8>, damage in 0usize..800, value: u8) {
        let cluster = Cluster::new();
        let at = |file: &str| cluster.path().join(file);
        let (ca, cert, key) = (at("ca.pem"), at("dba.pem"), at("dba.key"));
        let junk = at("junk");
        fs::write(&junk, &bytes).unwrap();
        fs::set_permissions(&junk, Permissions::from_mode(0o600)).unwrap();
        prop_assert!(Credentials::load(&junk, &cert, &key).is_err());
        prop_assert!(Credentials::load(&ca, &junk, &key).is_err());
        prop_assert!(Credentials::load(&ca, &cert, &junk).is_err());
        prop_assert!(show(&junk).is_err());

        // One byte of a good file damaged: an answer, whichever.
        for file in [&ca, &cert, &key] {
            let mut good = fs::read(file).unwrap();
            let place = damage % good.len();
            good[place] = value;
            fs::write(&junk, &good).unwrap();
            let pick = |f| if f == file { &junk } else { f };
            let _ = Credentials::load(pick(&ca), pick(&cert), pick(&key));
            let _ = show(&junk);
        }
    }
}
