//! Real PostgreSQL: finding it ([`install`]), fetching it where there is none ([`package`]), running
//! initdb once ([`template`]), and running servers ([`server`]) under an account that PostgreSQL
//! accepts ([`account`]).

pub mod account;
pub mod database;
pub mod install;
pub mod package;
pub mod server;
mod template;

pub use database::Database;
pub use install::Installation;
pub use server::{DATABASE, Durability, Grouping, Options, Server};
