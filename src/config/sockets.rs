//! The unix sockets beside the listeners' addresses: where their files lie, and who may open them.

use std::path::{Path, PathBuf};

use super::ConfigError;
use super::written::{Entry, Written};
use crate::net::PATH_BYTES;

/// Where unix sockets are listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSettings {
    /// The directory of Postgres' sockets.
    pub postgres_dir: Option<PathBuf>,
    /// Redis' socket.
    pub redis: Option<PathBuf>,
    /// Where `serve` is asked for its listeners by the process that takes them over.
    pub control: Option<PathBuf>,
    /// The mode of the files, but the last.
    pub mode: u32,
}

impl Default for SocketSettings {
    fn default() -> Self {
        Self { postgres_dir: None, redis: None, control: None, mode: 0o600 }
    }
}

impl SocketSettings {
    /// The socket beside a Postgres listener on `port`: as libpq looks for it.
    #[must_use]
    pub fn postgres(&self, port: u16) -> Option<PathBuf> {
        self.postgres_dir.as_ref().map(|directory| directory.join(format!(".s.PGSQL.{port}")))
    }

    /// The socket beside the Redis listener with this index: those after the first have its number behind the name.
    #[must_use]
    pub fn redis(&self, index: usize) -> Option<PathBuf> {
        let path = self.redis.as_ref()?;
        if index == 0 {
            return Some(path.clone());
        }
        let mut name = path.clone().into_os_string();
        name.push(format!(".{}", index + 1));
        Some(name.into())
    }
}

/// What was written about them.
pub(super) fn resolve(written: &Written) -> Result<SocketSettings, ConfigError> {
    let path = |setting, longest_name: usize| {
        let Some(entry) = written.entry(setting) else { return Ok(None) };
        absolute(entry, PATH_BYTES.saturating_sub(longest_name)).map(Some)
    };
    if let (Some(entry), Some(other)) =
        (written.entry("control_socket"), written.entry("redis.socket"))
        && entry.text == other.text
    {
        return Err(entry.wrong("is redis.socket, too: each needs a place of its own"));
    }
    Ok(SocketSettings {
        postgres_dir: path("postgres.socket_dir", "/.s.PGSQL.65535".len())?,
        redis: path("redis.socket", 0)?,
        control: path("control_socket", 0)?,
        mode: mode(written)?,
    })
}

/// Clients name it from wherever they are.
fn absolute(entry: &Entry, most_bytes: usize) -> Result<PathBuf, ConfigError> {
    let path = Path::new(&entry.text);
    if !path.is_absolute() {
        return Err(entry.wrong("must be a path from the root, such as /run/tidegate"));
    }
    if entry.text.len() > most_bytes {
        return Err(entry.wrong(format!(
            "has {} bytes and may have {most_bytes}: the system takes no longer path for a socket",
            entry.text.len()
        )));
    }
    Ok(path.to_owned())
}

/// As chmod(1) has it. The nought in front is asked for, as a number of TOML's has none and would be read as another mode.
fn mode(written: &Written) -> Result<u32, ConfigError> {
    let Some(entry) = written.entry("socket_mode") else {
        return Ok(SocketSettings::default().mode);
    };
    let digits = entry.text.strip_prefix('0').filter(|digits| digits.len() == 3);
    let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok());
    mode.ok_or_else(|| {
        entry.wrong("must be four octal digits in quotes, such as \"0600\" or \"0660\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Loaded, load};

    fn loaded(variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let environment: Environment = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())))
            .collect();
        load(None, &environment, &[])
    }

    /// One path for two things.
    fn loaded_twice() -> Result<Loaded, ConfigError> {
        loaded(&[("TIDEGATE_CONTROL_SOCKET", "/run/one"), ("TIDEGATE_REDIS_SOCKET", "/run/one")])
    }

    #[test]
    fn sockets_are_named_as_their_clients_look_for_them() {
        let loaded_all = loaded(&[
            ("TIDEGATE_POSTGRES_SOCKET_DIR", "/run/tidegate"),
            ("TIDEGATE_REDIS_SOCKET", "/run/tidegate/redis.sock"),
            ("TIDEGATE_SOCKET_MODE", "0660"),
        ]);
        let sockets = loaded_all.unwrap().settings.sockets;
        assert_eq!(sockets.postgres(6432), Some("/run/tidegate/.s.PGSQL.6432".into()));
        assert_eq!(sockets.redis(0), Some("/run/tidegate/redis.sock".into()));
        assert_eq!(sockets.redis(1), Some("/run/tidegate/redis.sock.2".into()));
        assert_eq!(sockets.mode, 0o660);
        let error = loaded_twice().unwrap_err().to_string();
        assert!(error.contains("TIDEGATE_CONTROL_SOCKET"), "{error}");
        let none = SocketSettings::default();
        assert_eq!((none.postgres(1), none.redis(0), none.mode), (None, None, 0o600));
    }

    #[test]
    fn what_cannot_be_a_socket_is_refused_by_its_name() {
        let long = format!("/{}", "x".repeat(PATH_BYTES));
        for (name, value, words) in [
            ("TIDEGATE_POSTGRES_SOCKET_DIR", "run", "from the root"),
            ("TIDEGATE_POSTGRES_SOCKET_DIR", long.as_str(), "108 bytes"),
            ("TIDEGATE_REDIS_SOCKET", "redis.sock", "from the root"),
            ("TIDEGATE_REDIS_SOCKET", long.as_str(), "108 bytes"),
            // What 0o600 is in TOML.
            ("TIDEGATE_SOCKET_MODE", "384", "octal"),
            ("TIDEGATE_SOCKET_MODE", "600", "octal"),
            ("TIDEGATE_SOCKET_MODE", "0680", "octal"),
            ("TIDEGATE_SOCKET_MODE", "01777", "octal"),
        ] {
            let error = loaded(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(words), "{error}");
        }
    }
}
