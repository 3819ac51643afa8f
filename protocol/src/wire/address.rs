//! Addresses of the cluster's processes as people write them: `HOST:PORT`. Only their form is checked here;
//! names are resolved when they are dialled.

use std::net::Ipv6Addr;

/// The coordinator's documented port.
pub const COORDINATOR_PORT: u16 = 7400;

/// The agents' documented port.
pub const AGENT_PORT: u16 = 7401;

/// Checks that a text is `HOST:PORT`; `usual` is the port that the error proposes.
///
/// # Errors
/// What is wrong with it, and how to write it.
pub fn check_address(text: &str, usual: u16) -> Result<(), String> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!(
            "an IPv6 address stands in brackets before its port: write [{text}]:{usual}"
        ));
    }
    let missing = || format!("the port is missing: write HOST:{usual}");
    let (host, port) = text.rsplit_once(':').ok_or_else(missing)?;
    if port.is_empty() || port.ends_with(']') {
        return Err(missing());
    }
    if host.is_empty() {
        return Err(format!("the host is missing: write HOST:{usual}"));
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(()),
        Ok(0) | Err(_) => Err(format!("{port:?} is not a port: write HOST:{usual}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["h:7400", "h.example:1", "127.0.0.1:65535", "[::1]:7400"] {
            assert_eq!(check_address(good, COORDINATOR_PORT), Ok(()), "{good}");
        }
        for bad in ["h", "h.example", "h:", "[::1]", ""] {
            let said = check_address(bad, COORDINATOR_PORT);
            let expected = "the port is missing: write HOST:7400";
            assert_eq!(said, Err(expected.to_owned()), "{bad}");
        }
        for bad in [":7400", "h:0", "h:70000", "h:x", "::1"] {
            assert!(check_address(bad, AGENT_PORT).is_err(), "{bad}");
        }
    }
}
