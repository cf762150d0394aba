//! Settings, in two steps: what was written (`written`: file, environment, flags), then what it
//! means (`resolve`). Flags win over the environment, which wins over the file, which wins over the
//! defaults.

mod child;
mod conninfo;
mod current;
mod describe;
mod error;
mod hosts;
mod keys;
mod local;
mod namespaces;
mod passfile;
mod postgres_options;
mod postgres_url;
mod push;
mod redis_url;
mod resolve;
mod restart;
mod roots;
mod secret;
mod service;
mod settings;
mod sockets;
mod sources;
mod suggest;
mod tls;
mod uri;
mod users;
mod variable;
mod watched;
mod written;

use std::path::{Path, PathBuf};

pub use crate::net::Host;
pub use child::{ChildCredentials, ChildPassword, STAYS_OPEN};
pub use current::Current;
pub use describe::describe;
pub use error::ConfigError;
pub use hosts::{HostOrder, Hosts, ServerHost, TargetSession};
pub use local::leads_to;
pub use restart::{needs_restart, postgres_without_restart};
pub use roots::POSTGRES_PROTOCOL;
pub use secret::Secret;
pub use settings::{
    Access, AdminSettings, Auth, ChannelBinding, ClientCertificate, ConsoleUsers, FirstPasswords,
    ListenerEncryption, LogFormat, LogLevel, LogSettings, NamespaceSettings, Passing,
    PasswordOrigin, PoolMode, PoolModeRule, PoolModes, Portions, PostgresLimits, PostgresListener,
    PostgresSettings, PostgresUpstream, Probe, PushSettings, RedisLimits, RedisListener,
    RedisSettings, RedisTls, RedisUpstream, RemoteWrite, Settings, SslMode, SslNegotiation,
    TlsMode,
};
pub use sockets::SocketSettings;
pub use users::{UserSecret, Users};
pub use variable::{PooledUrl, PooledVariable, Protocol};
pub use written::Environment;

use written::Written;

/// Variables by which libpq would reach another server than the host of our URL, or ask of us what was asked of the server.
const MISLEADING: [&str; 4] = ["PGHOSTADDR", "PGSERVICE", "PGREQUIREAUTH", "PGSSLROOTCERT"];

/// Whether one of them does. The system's roots go with no `sslmode` but the one that our certificate can't satisfy.
fn misleads(name: &str, value: Option<&str>) -> bool {
    name != "PGSSLROOTCERT" || value == Some("system")
}

/// Everything that was configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What it means.
    pub settings: Settings,
    /// The pooled variables, for the wrapped command.
    pub variables: Vec<PooledVariable>,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Every file that something was read from.
    pub watched: Vec<PathBuf>,
    /// What deserves a word in the log.
    pub warnings: Vec<String>,
    sources: Sources,
    /// Variables that another tidegate in the wrapped command is not to be set by, or that lead to a secret of ours.
    ours_alone: Vec<&'static str>,
}

/// All that settings are read from.
#[derive(Clone, PartialEq)]
struct Sources {
    file: Option<PathBuf>,
    environment: Environment,
    flags: Vec<(String, String)>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The environment is full of secrets.
        f.debug_struct("Sources").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Loaded {
    /// Loads them again, from the same file, environment and flags. Reads files: not in the runtime's thread.
    ///
    /// # Errors
    /// As [`load`].
    pub fn read_again(&self) -> Result<Self, ConfigError> {
        let Sources { file, environment, flags } = &self.sources;
        let flags: Vec<_> =
            flags.iter().map(|(path, text)| (path.as_str(), text.clone())).collect();
        load_beside(file.as_deref(), environment, &flags, &self.variables)
    }

    /// The variables that the wrapped command is not to inherit: what would lead it, or another tidegate in it, past us to a
    /// server, and what is a secret of ours alone.
    #[must_use]
    pub fn hidden_variables(&self) -> Vec<String> {
        let sources = self.variables.iter().flat_map(|known| sources::other_sources(&known.name));
        let misleads = |name: &&&str| {
            let value = self.sources.environment.get(**name).cloned().flatten();
            self.settings.postgres.is_some() && misleads(name, value.as_deref())
        };
        let misleading = MISLEADING.iter().filter(misleads);
        let ours = keys::OURS_ALONE.iter().chain(&self.ours_alone);
        sources.chain(misleading.chain(ours).map(|name| (*name).to_owned())).collect()
    }

    /// Variables that the wrapped command inherits and that hold a password which its URLs don't: by their names.
    #[must_use]
    pub fn left_passwords(&self) -> Vec<&str> {
        if self.settings.child_password == ChildPassword::OfUrl {
            return Vec::new();
        }
        let hidden = self.hidden_variables();
        let passwords: Vec<_> =
            self.variables.iter().filter_map(PooledVariable::server_password).collect();
        let holds = |text: &str| passwords.iter().any(|password| password.is_told_by(text));
        let environment = self.sources.environment.iter();
        let inherited = environment.filter(|(name, _)| {
            !hidden.contains(name) && !self.variables.iter().any(|known| known.name == **name)
        });
        let holding = inherited.filter(|(_, value)| value.as_deref().is_some_and(holds));
        holding.map(|(name, _)| name.as_str()).collect()
    }

    /// The encryption of the listeners of one side.
    #[must_use]
    pub fn tls_of(&self, protocol: Protocol) -> TlsMode {
        let encryption = match protocol {
            Protocol::Postgres => self.settings.postgres.as_ref().map(|side| &side.encryption),
            Protocol::Redis => self.settings.redis.as_ref().map(|side| &side.encryption),
        };
        encryption.map_or(TlsMode::Off, |encryption| encryption.mode)
    }

    /// The configured address of the listener that leads to `variable`'s upstream.
    #[must_use]
    pub fn listen_of(&self, variable: &PooledVariable) -> Option<std::net::SocketAddr> {
        let index = variable.listener;
        match variable.protocol() {
            Protocol::Postgres => {
                self.settings.postgres.as_ref()?.listeners.get(index).map(|known| known.listen)
            }
            Protocol::Redis => {
                self.settings.redis.as_ref()?.listeners.get(index).map(|known| known.listen)
            }
        }
    }
}

/// Loads the settings: the file named by `file` or `TIDEGATE_CONFIG`, then `environment`, then
/// `flags` (the setting's path in the file, and its text). Reads a file: call it before the runtime.
///
/// # Errors
/// The first setting that cannot be taken, by the name its writer knows.
pub fn load(
    file: Option<&Path>,
    environment: &Environment,
    flags: &[(&str, String)],
) -> Result<Loaded, ConfigError> {
    load_beside(file, environment, flags, &[])
}

/// The same, for a process that has these variables already.
fn load_beside(
    file: Option<&Path>,
    environment: &Environment,
    flags: &[(&str, String)],
    running: &[PooledVariable],
) -> Result<Loaded, ConfigError> {
    let sources = Sources {
        file: file.map(Path::to_owned),
        environment: environment.clone(),
        flags: flags.iter().map(|(path, text)| ((*path).to_owned(), text.clone())).collect(),
    };
    let mut written = Written::default();
    let from_environment = environment.get("TIDEGATE_CONFIG").cloned().flatten();
    let (file, named_by) = match (file, from_environment) {
        (Some(path), _) => (Some(path.to_owned()), "--config"),
        (None, path) => (path.map(PathBuf::from), "TIDEGATE_CONFIG"),
    };
    if let Some(path) = &file {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError::new(named_by, format!("cannot be read: {error}; it must be a TOML file"))
                .with_value(path.display().to_string())
        })?;
        written.take_file(&path.display().to_string(), &text)?;
    }
    let secret = written.is_secret();
    written.take_environment(environment)?;
    for (path, text) in flags {
        written.take_flag(path, text);
    }
    let mut resolved = resolve::resolve(&written, environment, running)?;
    resolved.settings.check_roots()?;
    let pooled = resolve::pooled_names(&written);
    // Whom we have bound to a namespace, a second tidegate would bind again, and a prefix would come twice. Our sockets it would
    // find taken, and our certificate is none of those that are pinned.
    let ours = [
        "redis.namespace",
        "redis.socket",
        "redis.pin",
        "redis.pin_file",
        "postgres.socket_dir",
        "postgres.pin",
        "postgres.pin_file",
    ];
    let bound = ours.iter().any(|name| written.entry(name).is_some());
    let ours_alone = if secret || bound { keys::OURS_WITH_THE_FILE.to_vec() } else { Vec::new() };
    resolved.warnings.extend(written::unknown_variables(environment, &pooled));
    let watched = watched::watched(file.as_deref(), &written, environment, &resolved);
    Ok(Loaded {
        settings: resolved.settings,
        variables: resolved.variables,
        file,
        watched,
        warnings: resolved.warnings,
        sources,
        ours_alone,
    })
}

#[cfg(test)]
mod tests;
