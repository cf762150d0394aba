//! Redis: one client's session over shared lanes and a few backends of its own for what can't be shared.
//!
//! Sans-IO core: [`wire`], [`command`], [`exchange`], [`greeting`], [`login`], [`scripts`]. Above it: [`backend`] (one connection
//! to the server, kept by the pool), [`lane`] (one backend for many sessions, whose replies go to their [`mailbox`]es),
//! [`pinned`] (a backend that one session holds), [`session`], and [`service`], which takes clients.

pub mod backend;
pub mod blocking;
mod census;
pub mod clients;
pub mod command;
pub mod entrance;
pub mod exchange;
pub mod greeting;
mod incoming;
pub mod lane;
pub mod login;
pub mod mailbox;
pub mod namespace;
pub mod pinned;
mod plan;
pub mod pop;
pub mod pubsub;
pub mod roster;
pub mod scripts;
pub mod service;
pub mod session;
pub mod transaction;
pub mod unblock;
pub mod upstream;
mod view;
pub mod wire;
