//! Postgres: one client's session over the few backends of a transaction pool.
//!
//! The sans-IO core (`wire` … `relay`) knows the protocol and no socket; `backend` is a pooled server connection;
//! `session` holds both ends of one client.

pub mod exchange;
pub mod relay;
pub mod settings;
pub mod sql;
pub mod statements;
pub mod wire;
