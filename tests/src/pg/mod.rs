//! Real PostgreSQL: finds it ([`install`]), downloads it if there is none ([`package`]), runs
//! initdb once ([`template`]), and runs servers ([`server`]) under an account that PostgreSQL
//! accepts ([`account`]).

pub mod account;
pub mod database;
pub mod install;
pub mod package;
pub mod server;
mod template;

pub use account::Account;
pub use database::Database;
pub use install::Installation;
pub use server::{DATABASE, Durability, Grouping, Options, Server, create_data};
