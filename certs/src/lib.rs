//! The cluster's certificates: making them, keeping them in files, and what TLS is made of them. Other private keys'
//! files are read and written by the same rules.
//!
//! Owns who a process is: [`Identity`] (a role and a name) stands in the certificate as a URI, and
//! everything that decides what a peer may do decides by it. Owns every use of rcgen and every
//! rustls configuration; nobody else builds one, so there is one crypto provider (ring), one TLS
//! version (1.3) and no way to listen or dial without a certificate.
//!
//! Never opens a socket, never decides what a role may do, never prints.
//!
//! Invariants:
//! - a private key is written once, with mode 0600, and no file is ever overwritten;
//! - [`Credentials`] exist only for a key that nobody else can read, that belongs to its
//!   certificate, which the CA signed and which is valid now;
//! - a client checks a server by [`server_name`], which is made of role and node name: addresses
//!   may change, and a certificate of one node never passes for another.

mod authority;
mod credentials;
mod file;
mod identity;
mod inspect;

pub use authority::{
    AuthorityError, CA_CERTIFICATE, CA_KEY, IssuedFiles, LeafRequest, Validity, init_ca, issue,
    issue_with,
};
pub use credentials::{Credentials, CredentialsError};
pub use file::{
    FileError, read as read_file, read_key as read_key_file, write_new_key as write_key_file,
};
pub use identity::{Identity, IdentityError, Role, any_coordinator, server_name};
pub use inspect::{CertificateInfo, InspectError, show};
