//! Postgres: one client's session over the few backends of a transaction pool.

pub mod cancel;
pub mod connect;
pub mod greeting;
pub mod login;
pub mod message;
pub mod scram;
