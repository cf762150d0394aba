//! What the wrapped command knows in place of the servers' passwords: a local credential for each URL, made at start, which opens
//! our listener and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::secret::Secret;
use super::{ConfigError, FirstPasswords, Loaded};

/// Which password a URL for the wrapped command has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChildPassword {
    /// One of its own, where the server's has one.
    #[default]
    Own,
    /// The server's.
    OfUrl,
}

/// What is warned of when a URL gets a password by a reload: the wrapped command can't be told.
pub const STAYS_OPEN: &str = "the URL has a password now, and the command was started without: all who reach the listener are let in as \
     before, until a restart";

/// What lets the wrapped command in for as long as it lives: its environment doesn't change when settings do.
#[derive(Clone, Debug, Default)]
pub struct ChildCredentials {
    /// What becomes of the servers' passwords.
    pub first: FirstPasswords,
    /// By pool.
    own: Arc<BTreeMap<String, Secret>>,
}

impl ChildCredentials {
    /// Makes them for a command that begins now. A URL without a password has none: nobody must prove anything there.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn made(loaded: &Loaded) -> Result<Self, ConfigError> {
        let mut own = BTreeMap::new();
        let wanted = loaded.variables.iter().filter(|variable| {
            loaded.settings.child_password == ChildPassword::Own
                && variable.server_password().is_some()
        });
        for variable in wanted {
            let secret = Secret::random().map_err(|error| {
                ConfigError::new(
                    "child_credentials",
                    format!("no credential could be made: {error}; set it to url"),
                )
            })?;
            own.entry(variable.pool.clone()).or_insert(secret);
        }
        Ok(Self { first: FirstPasswords::Stay, own: Arc::new(own) })
    }

    /// What opens the pool of this name besides the server's password.
    #[must_use]
    pub fn of(&self, pool: &str) -> Option<&Secret> {
        self.own.get(pool)
    }
}
