//! Redis: one client's session over shared lanes and a few backends of its own for what can't be shared.
//!
//! Sans-IO core: [`wire`], [`command`], [`exchange`], [`greeting`], [`login`]. Above it: [`backend`] (one connection
//! to the server, kept by the pool), [`lane`] (one backend for many sessions), [`session`] and [`service`].

pub mod command;
pub mod exchange;
pub mod greeting;
pub mod login;
pub mod wire;
