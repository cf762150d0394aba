//! Postgres: one client's session over the few backends of a transaction pool.
//!
//! The sans-IO core knows the protocol and no socket: `wire`, `message`, `greeting`, `login`, `scram`, `exchange`,
//! `statements`, `settings`, `sql`, `relay`. `connect` opens a server connection, `backend` is a pooled one, `clean`
//! brings it back when its client has gone; `session` holds both ends of one client.

pub mod backend;
pub mod bounds;
pub mod cancel;
pub mod clean;
pub mod clients;
pub mod connect;
mod console;
pub mod exchange;
mod greet;
pub mod greeting;
pub mod hosts;
pub mod hub;
pub mod listen;
pub mod login;
pub mod message;
pub mod orders;
pub mod overdue;
mod plan;
pub mod relay;
mod replication;
pub mod routes;
pub mod scram;
pub mod service;
pub mod session;
pub mod settings;
pub mod shares;
pub mod sql;
pub mod statements;
pub mod truth;
mod view;
pub mod wire;
