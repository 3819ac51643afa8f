//! A certificate for people.

use jiff::Timestamp;
use steep_certs::CertificateInfo;

use super::table::pairs;
use super::{Paint, clean};

/// What it says, and whether it holds at that moment.
pub(crate) fn certificate(info: &CertificateInfo, now: Timestamp, paint: Paint) -> String {
    let (role, name) = match &info.identity {
        Some(identity) => (identity.role.to_string(), identity.name.clone()),
        None => ("certificate authority".to_owned(), "-".to_owned()),
    };
    let state = if now < info.validity.not_before {
        paint.red("not valid yet")
    } else if now > info.validity.not_after {
        paint.red("expired")
    } else {
        let days = info.validity.not_after.duration_since(now).as_hours() / 24;
        let text = format!("valid, {days} days left");
        if days < 30 {
            paint.yellow(&text)
        } else {
            paint.green(&text)
        }
    };
    let names = info.dns_names.iter().map(|name| clean(name));
    let addresses = info.addresses.iter().map(ToString::to_string);
    let sans: Vec<String> = names.chain(addresses).collect();
    let sans = if sans.is_empty() {
        "-".to_owned()
    } else {
        sans.join("\n")
    };
    pairs(
        &[
            ("role", role),
            ("name", name),
            ("names", sans),
            ("from", info.validity.not_before.to_string()),
            ("until", format!("{} ({state})", info.validity.not_after)),
            ("issuer", clean(&info.issuer)),
            ("serial", info.serial.clone()),
        ],
        0,
        paint,
    )
}

#[cfg(test)]
mod tests {
    use super::super::samples::at;
    use super::*;
    use steep_certs::{Identity, Role, Validity};

    #[test]
    fn a_certificate_shows_role_name_sans_and_validity() {
        let info = CertificateInfo {
            identity: Some(Identity::new(Role::Agent, "node_a").unwrap()),
            is_ca: false,
            subject: "CN=node_a".to_owned(),
            issuer: "O=steep-repl, CN=steep-repl cluster CA 01020304".to_owned(),
            serial: "01:02".to_owned(),
            dns_names: vec!["node_a.agent.steep-repl.internal".to_owned()],
            addresses: vec!["10.0.0.1".parse().unwrap()],
            validity: Validity {
                not_before: at(0),
                not_after: at(40 * 86_400),
            },
        };
        insta::assert_snapshot!(certificate(&info, at(60), Paint::Plain));
        assert!(certificate(&info, at(41 * 86_400), Paint::Plain).contains("(expired)"));
        assert!(certificate(&info, at(-1), Paint::Plain).contains("(not valid yet)"));
    }
}
