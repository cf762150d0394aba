//! TLS on both sides, as the libraries that people use ask for it: libpq 15 (psql) and 18 (psycopg), redis-cli and redis-py.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

#[path = "tls/clients.rs"]
mod clients;
#[path = "tls/impostor.rs"]
mod impostor;
#[path = "tls/listener.rs"]
mod listener;
#[path = "tls/redis.rs"]
mod redis;
#[path = "tls/upstream.rs"]
mod upstream;
