//! Tidegate: a sidecar that carries many Postgres and Redis clients over the few connections a plan allows.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod lifecycle;
pub mod metrics;
pub mod net;
pub mod pool;
pub mod postgres;
pub mod push;
pub mod redis;
pub mod status;
pub mod supervisor;
pub mod top;
