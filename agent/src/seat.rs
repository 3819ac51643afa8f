//! Where this process listens, as a digest that no two living processes share.
//!
//! A port has one listener per network namespace, boot and machine. So when another process reports the
//! same seat, the coordinator knows at once that the first is gone.

use steep_protocol::message::agent::Seat;

/// Changes with every boot; the host name replaces it where it is missing.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Identifies the network namespace by its inode.
const NETWORK: &str = "/proc/self/ns/net";

pub(crate) fn seat(port: u16) -> Seat {
    let boot = std::fs::read(BOOT_ID)
        .unwrap_or_else(|_| rustix::system::uname().nodename().to_bytes().to_vec());
    let network = std::fs::read_link(NETWORK).unwrap_or_default();
    digest(&boot, network.as_os_str().as_encoded_bytes(), port)
}

fn digest(boot: &[u8], network: &[u8], port: u16) -> Seat {
    let mut hasher = blake3::Hasher::new();
    for part in [boot, network, &port.to_be_bytes()] {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    Seat(u64::from_be_bytes(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_boot_network_or_port_is_another_seat() {
        let seat = digest(b"boot", b"net:[1]", 7401);
        assert_eq!(seat, digest(b"boot", b"net:[1]", 7401));
        for other in [
            digest(b"boot2", b"net:[1]", 7401),
            digest(b"boot", b"net:[2]", 7401),
            digest(b"boot", b"net:[1]", 7402),
            digest(b"bootnet", b":[1]", 7401),
        ] {
            assert_ne!(seat, other);
        }
    }
}
