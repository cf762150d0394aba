//! What `[[redis.namespaces]]` means.

use super::suggest;
use super::variable::{Origin, PooledVariable};
use super::written::{Entry, Environment, Written, WrittenNamespace};
use super::{Auth, ConfigError, NamespaceSettings, PasswordOrigin, RedisListener, Secret};
use crate::redis::namespace::{Mode, Namespace, Rights, ScriptRule};

/// Longest value of a namespace's own, when it doesn't say: as long as Redis takes.
const VALUE_BYTES: usize = 512 * 1024 * 1024;
const CLIENTS: usize = 1_000_000;
const COMMANDS: usize = 1_000_000_000;

/// Gives each namespace to the listener of its upstream, and the wrapped command a variable for it.
pub(super) fn resolve(
    written: &Written,
    environment: &Environment,
    auth: Auth,
    listeners: &mut [RedisListener],
    variables: &mut Vec<PooledVariable>,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    let mut names: Vec<String> = Vec::new();
    for namespace in written.namespaces() {
        let settings = settings(namespace, environment)?;
        let user = settings.namespace.name.to_string();
        if names.contains(&user) {
            let problem = format!("two namespaces are called {user}");
            return Err(ConfigError::new(&namespace.source, problem));
        }
        let Some(base) = base(namespace, variables)? else { continue };
        let name = variable(namespace, &user)?;
        if variables.iter().any(|known| known.name == name) {
            let problem =
                format!("the variable {name} is another's: name one with variable = \"...\"");
            return Err(ConfigError::new(&namespace.source, problem));
        }
        let own = base.of_namespace(name, &user, &settings.password);
        names.push(user);
        if let Some(listener) = listeners.get_mut(base.listener) {
            listener.namespaces.push(settings);
        }
        variables.extend(own);
    }
    first(written, listeners)?;
    warn_of_open_doors(auth, listeners, warnings);
    Ok(())
}

/// A namespace is a wall only if nobody gets past it without a password.
fn warn_of_open_doors(auth: Auth, listeners: &[RedisListener], warnings: &mut Vec<String>) {
    for listener in listeners {
        let open = auth == Auth::Trust || listener.upstream.password.is_none();
        if open && !listener.namespaces.is_empty() && listener.first_namespace.is_none() {
            warnings.push(format!(
                "{} needs no password, so clients that give none are bound to no namespace; name one for them in \
                 redis.namespace, or put a password into the URL",
                listener.upstream.name
            ));
        }
    }
}

/// Which namespace clients have that come with the upstream's own credentials.
fn first(written: &Written, listeners: &mut [RedisListener]) -> Result<(), ConfigError> {
    let Some(entry) = written.entry("redis.namespace") else { return Ok(()) };
    // Without a Redis there is nothing to be bound to.
    if listeners.is_empty() {
        return Ok(());
    }
    let mut known = Vec::new();
    for listener in listeners.iter_mut() {
        let position =
            listener.namespaces.iter().position(|one| *one.namespace.name == *entry.text);
        if position.is_some() {
            listener.first_namespace = position;
            return Ok(());
        }
        known.extend(listener.namespaces.iter().map(|one| &*one.namespace.name));
    }
    let hint = suggest::hint(&entry.text, known.iter().copied());
    Err(entry.wrong(format!("is the name of no [[redis.namespaces]]{hint}")))
}

/// The variable of the upstream: the one that is named, or the first Redis of all. `None`: there is no Redis.
fn base(
    namespace: &WrittenNamespace,
    variables: &[PooledVariable],
) -> Result<Option<PooledVariable>, ConfigError> {
    let redis = |variable: &&PooledVariable| {
        variable.protocol() == super::Protocol::Redis && variable.origin == Origin::Environment
    };
    let mut known = variables.iter().filter(redis);
    match namespace.entry("url") {
        None => Ok(known.next().cloned()),
        Some(entry) => match known.find(|variable| variable.name == entry.text) {
            Some(variable) => Ok(Some(variable.clone())),
            None => Err(entry.wrong("must be one of the variables in redis.urls")),
        },
    }
}

fn variable(namespace: &WrittenNamespace, name: &str) -> Result<String, ConfigError> {
    let Some(entry) = namespace.entry("variable") else {
        let name = name.to_ascii_uppercase().replace('-', "_");
        return Ok(format!("{name}_REDIS_URL"));
    };
    let letters = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    if entry.text.is_empty()
        || !entry.text.chars().all(letters)
        || entry.text.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(entry.wrong("must be the name of a variable, such as CACHE_REDIS_URL"));
    }
    Ok(entry.text.clone())
}

fn settings(
    namespace: &WrittenNamespace,
    environment: &Environment,
) -> Result<NamespaceSettings, ConfigError> {
    let name = name(namespace)?;
    let mode = choice(
        namespace.entry("mode"),
        Mode::Enforce,
        &[("enforce", Mode::Enforce), ("prefix", Mode::Prefix)],
    )?;
    let prefixes = match namespace.entry("prefix") {
        None => vec![format!("{name}:")],
        Some(entry) => read_prefixes(entry)?,
    };
    let readable = namespace.entry("readable").map_or(Ok(Vec::new()), read_prefixes)?;
    if mode == Mode::Prefix && (prefixes.len() > 1 || !readable.is_empty()) {
        let problem = "with mode = \"prefix\" there is one prefix, and nothing else is readable";
        return Err(ConfigError::new(&namespace.source, problem));
    }
    let rights = [("true", Rights::ReadOnly), ("false", Rights::ReadWrite)];
    let (password, origin) = password(namespace, environment)?;
    let bytes = |names: Vec<String>| {
        names.into_iter().map(|name| name.into_bytes().into_boxed_slice()).collect()
    };
    let upper = |word: &String| word.to_ascii_uppercase().into_boxed_str();
    Ok(NamespaceSettings {
        password,
        origin,
        client_limit: count(namespace.entry("client_limit"), CLIENTS)?,
        pinned_limit: bound(namespace.entry("pinned_limit"), CLIENTS)?,
        commands_per_second: bound(namespace.entry("commands_per_second"), COMMANDS)?
            .and_then(|rate| u32::try_from(rate).ok()),
        namespace: Namespace {
            name: name.into_boxed_str(),
            mode,
            prefixes: bytes(prefixes),
            readable: bytes(readable),
            rights: choice(namespace.entry("read_only"), Rights::ReadWrite, &rights)?,
            allowed: words(namespace.entry("allow")).iter().map(upper).collect(),
            scripts: scripts(namespace)?,
            value_bytes: count(namespace.entry("value_bytes"), VALUE_BYTES)?,
        },
    })
}

/// What names begin with. A star could be taken for the place of something else (SORT's BY and GET).
fn read_prefixes(entry: &Entry) -> Result<Vec<String>, ConfigError> {
    let prefixes = words(Some(entry));
    if prefixes.is_empty() {
        return Err(entry.wrong("is empty: every name would be inside"));
    }
    if prefixes.iter().any(|prefix| prefix.contains('*')) {
        return Err(entry.wrong("must be what names begin with, not a pattern: take the * out"));
    }
    Ok(prefixes)
}

fn name(namespace: &WrittenNamespace) -> Result<String, ConfigError> {
    let Some(entry) = namespace.entry("name") else {
        return Err(ConfigError::new(&namespace.source, "a namespace needs a name = \"...\""));
    };
    let letters = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
    let good = !entry.text.is_empty() && entry.text.len() <= 64 && entry.text.chars().all(letters);
    if !good || entry.text == "default" {
        return Err(entry
            .wrong("must be letters, digits, - and _, and not default, which is the plain user"));
    }
    Ok(entry.text.clone())
}

fn password(
    namespace: &WrittenNamespace,
    environment: &Environment,
) -> Result<(Secret, PasswordOrigin), ConfigError> {
    let secret = match (namespace.entry("password"), namespace.entry("password_env")) {
        (Some(_), Some(entry)) => {
            return Err(entry.wrong("password is given, too: take one of them out"));
        }
        (Some(entry), None) => entry.text.clone(),
        (None, Some(entry)) => match environment.get(&entry.text) {
            Some(Some(text)) if !text.trim().is_empty() => text.trim().to_owned(),
            _ => return Err(entry.wrong("must name a variable that is set and not empty")),
        },
        (None, None) => return Ok((random(&namespace.source)?, PasswordOrigin::Made)),
    };
    if secret.is_empty() {
        return Err(ConfigError::new(
            &namespace.source,
            "the password is empty; leave it out to have one made",
        ));
    }
    Ok((Secret::new(secret), PasswordOrigin::Written))
}

/// The wrapped command finds it in its variable.
fn random(source: &str) -> Result<Secret, ConfigError> {
    Secret::random().map_err(|error| {
        ConfigError::new(source, format!("no password could be made: {error}; give one"))
    })
}

fn scripts(namespace: &WrittenNamespace) -> Result<ScriptRule, ConfigError> {
    let Some(entry) = namespace.entry("scripts") else { return Ok(ScriptRule::Sandbox) };
    let words = words(Some(entry));
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["sandbox"] => Ok(ScriptRule::Sandbox),
        ["deny"] => Ok(ScriptRule::Deny),
        ["trust"] => Ok(ScriptRule::Trust),
        ref hashes if !hashes.is_empty() && hashes.iter().all(|hash| is_sha1(hash)) => {
            let lower = |hash: &&str| hash.to_ascii_lowercase().into_boxed_str();
            Ok(ScriptRule::TrustSome(hashes.iter().map(lower).collect()))
        }
        _ => {
            Err(entry.wrong("must be sandbox, deny, trust, or a list of SHA1s of scripts to trust"))
        }
    }
}

fn is_sha1(word: &str) -> bool {
    word.len() == 40 && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn words(entry: Option<&Entry>) -> Vec<String> {
    let text = entry.map(|entry| entry.text.as_str()).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

fn count(entry: Option<&Entry>, default: usize) -> Result<usize, ConfigError> {
    let Some(entry) = entry else { return Ok(default) };
    let number = entry.text.parse().ok().filter(|number| (1..=default).contains(number));
    number.ok_or_else(|| entry.wrong(format!("must be a whole number from 1 to {default}")))
}

/// A bound that there need not be.
fn bound(entry: Option<&Entry>, most: usize) -> Result<Option<usize>, ConfigError> {
    entry.map(|entry| count(Some(entry), most)).transpose()
}

fn choice<T: Copy>(
    entry: Option<&Entry>,
    default: T,
    choices: &[(&str, T)],
) -> Result<T, ConfigError> {
    let Some(entry) = entry else { return Ok(default) };
    let found = choices.iter().find(|(word, _)| *word == entry.text.to_ascii_lowercase());
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        entry.wrong(format!("must be one of {}", words.join(", ")))
    })
}
