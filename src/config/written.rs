//! What was written: every setting's text with its source, file, environment and flags merged.
//! Nothing here knows what a value means; unknown names are found here.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeArray, DeTable, DeValue};

use super::keys::{KEYS, NAMESPACE_KEYS, OTHER_VARIABLES};
use super::sources::other_sources;
use super::{ConfigError, suggest};

/// The process's environment as text; values that are not UTF-8 are `None`.
pub type Environment = BTreeMap<String, Option<String>>;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) text: String,
    /// As its writer knows it: `TIDEGATE_WORKERS`, `--workers`, `tidegate.toml line 3, workers`.
    pub(super) source: String,
}

impl Entry {
    pub(super) fn wrong(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError::new(&self.source, problem).with_value(&self.text)
    }
}

/// The winning entry of each setting, by its path in the file.
#[derive(Debug, Default)]
pub(super) struct Written {
    entries: BTreeMap<&'static str, Entry>,
    namespaces: Vec<WrittenNamespace>,
}

/// What was written of one `[[redis.namespaces]]`.
#[derive(Debug)]
pub(super) struct WrittenNamespace {
    /// Where it stands in the file.
    pub(super) source: String,
    entries: BTreeMap<&'static str, Entry>,
}

impl WrittenNamespace {
    /// What was written for `key`, if anything was.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        debug_assert!(NAMESPACE_KEYS.contains(&key), "{key} is not in NAMESPACE_KEYS");
        self.entries.get(key)
    }
}

impl Written {
    /// Takes the settings of a TOML file called `name`.
    pub(super) fn take_file(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let table = DeTable::parse(text).map_err(|error| {
            ConfigError::new(name, format!("not a TOML file: {}", error.to_string().trim_end()))
        })?;
        let place = |at: usize| format!("{name} line {}", line(text, at));
        for (key, value) in table.get_ref() {
            let key_name: &str = key.get_ref();
            let at = place(key.span().start);
            let DeValue::Table(section) = value.get_ref() else {
                self.take_value(key_name, value.get_ref(), &at)?;
                continue;
            };
            let mut sections = KEYS.iter().filter_map(|known| known.path.split_once('.'));
            if !sections.any(|(known, _)| known == key_name) {
                let known = KEYS.iter().filter_map(|key| Some(key.path.split_once('.')?.0));
                let hint = suggest::hint(key_name, known);
                return Err(ConfigError::new(at, format!("unknown section [{key_name}]{hint}")));
            }
            for (key, value) in section {
                if let (true, DeValue::Array(items)) =
                    (is_namespaces(key_name, key.get_ref()), value.get_ref())
                {
                    self.take_namespaces(items, &place)?;
                    continue;
                }
                let path = format!("{key_name}.{}", key.get_ref());
                self.take_value(&path, value.get_ref(), &place(key.span().start))?;
            }
        }
        Ok(())
    }

    fn take_namespaces(
        &mut self,
        items: &DeArray<'_>,
        place: &dyn Fn(usize) -> String,
    ) -> Result<(), ConfigError> {
        for item in items {
            let source = place(item.span().start);
            let DeValue::Table(table) = item.get_ref() else {
                return Err(ConfigError::new(source, "must be tables: [[redis.namespaces]]"));
            };
            let mut namespace = WrittenNamespace { source, entries: BTreeMap::new() };
            for (key, value) in table {
                let (name, at): (&str, _) = (key.get_ref(), place(key.span().start));
                let Some(known) = NAMESPACE_KEYS.iter().find(|known| **known == name) else {
                    let hint = suggest::hint(name, NAMESPACE_KEYS.iter().copied());
                    return Err(ConfigError::new(
                        at,
                        format!("unknown setting redis.namespaces.{name}{hint}"),
                    ));
                };
                let source = format!("{at}, redis.namespaces.{name}");
                let Some(text) = text_of(value.get_ref()) else {
                    let problem = "must be a text, a number, a boolean or a list of texts";
                    return Err(ConfigError::new(source, problem));
                };
                namespace.entries.insert(known, Entry { text, source });
            }
            self.namespaces.push(namespace);
        }
        Ok(())
    }

    /// Whether what was written until now holds a secret that is ours alone.
    pub(super) fn is_secret(&self) -> bool {
        let push = ["push.remote_write_url", "push.remote_write_token"];
        push.iter().any(|path| self.entry(path).is_some())
            || self.namespaces.iter().any(|one| one.entry("password").is_some())
    }

    /// Every `[[redis.namespaces]]`, in order.
    pub(super) fn namespaces(&self) -> &[WrittenNamespace] {
        &self.namespaces
    }

    fn take_value(&mut self, path: &str, value: &DeValue<'_>, at: &str) -> Result<(), ConfigError> {
        let Some(key) = KEYS.iter().find(|key| key.path == path) else {
            let hint = suggest::hint(path, KEYS.iter().map(|key| key.path));
            return Err(ConfigError::new(at, format!("unknown setting {path}{hint}")));
        };
        let source = format!("{at}, {path}");
        let Some(text) = text_of(value) else {
            return Err(ConfigError::new(
                source,
                "must be a text, a number, a boolean or a list of texts",
            ));
        };
        self.entries.insert(key.path, Entry { text, source });
        Ok(())
    }

    /// Takes the variables of the environment contract.
    pub(super) fn take_environment(
        &mut self,
        environment: &Environment,
    ) -> Result<(), ConfigError> {
        for key in KEYS {
            let Some(variable) = key.variable else { continue };
            let Some(value) = environment.get(variable) else { continue };
            let Some(text) = value else {
                return Err(ConfigError::new(variable, "is not UTF-8 text"));
            };
            if text.trim().is_empty() {
                let problem =
                    format!("is set but empty; give it a value or unset it ({})", key.path);
                return Err(ConfigError::new(variable, problem));
            }
            let entry = Entry { text: text.trim().to_owned(), source: variable.to_owned() };
            self.entries.insert(key.path, entry);
        }
        Ok(())
    }

    /// Takes one flag of the command line, by the path of its setting.
    pub(super) fn take_flag(&mut self, path: &str, text: &str) {
        if let Some(key) = KEYS.iter().find(|key| key.path == path) {
            let source = format!("--{}", key.flag.unwrap_or(key.path));
            self.entries.insert(key.path, Entry { text: text.to_owned(), source });
        }
    }

    /// What was written for `path`, if anything was.
    pub(super) fn entry(&self, path: &str) -> Option<&Entry> {
        debug_assert!(KEYS.iter().any(|key| key.path == path), "{path} is not in KEYS");
        self.entries.get(path)
    }

    /// A whole number within `range`.
    pub(super) fn count(
        &self,
        path: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize, ConfigError> {
        let Some(entry) = self.entry(path) else { return Ok(default) };
        match entry.text.parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => {
                let (least, most) = (range.start(), range.end());
                Err(entry.wrong(format!(
                    "must be a whole number from {least} to {most} (default {default})"
                )))
            }
        }
    }

    /// Milliseconds within `range`.
    pub(super) fn millis(
        &self,
        path: &str,
        default: Duration,
        range: RangeInclusive<u64>,
    ) -> Result<Duration, ConfigError> {
        let Some(entry) = self.entry(path) else { return Ok(default) };
        match entry.text.parse() {
            Ok(number) if range.contains(&number) => Ok(Duration::from_millis(number)),
            _ => Err(entry.wrong(format!(
                "must be milliseconds, a whole number from {} to {} (default {})",
                range.start(),
                range.end(),
                default.as_millis()
            ))),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        path: &str,
        default: T,
        choices: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let Some(entry) = self.entry(path) else { return Ok(default) };
        let text = entry.text.to_ascii_lowercase();
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let hint = suggest::hint(&text, words.iter().copied());
        Err(entry.wrong(format!("must be one of {}{hint}", words.join(", "))))
    }

    /// On or off.
    pub(super) fn switch(&self, path: &str) -> Result<bool, ConfigError> {
        let on = [("1", true), ("true", true), ("on", true), ("yes", true)];
        let off = [("0", false), ("false", false), ("off", false), ("no", false)];
        self.choice(path, false, &[on, off].concat())
    }
}

/// A warning for each `TIDEGATE_` variable that nothing reads; `pooled` are the names of the pooled
/// variables, each of which may have an upstream in `TIDEGATE_<name>`.
pub(super) fn unknown_variables(environment: &Environment, pooled: &[String]) -> Vec<String> {
    let upstreams: Vec<String> = pooled.iter().flat_map(|name| other_sources(name)).collect();
    let known: Vec<&str> = KEYS
        .iter()
        .filter_map(|key| key.variable)
        .chain(OTHER_VARIABLES)
        .chain(upstreams.iter().map(String::as_str))
        .collect();
    environment
        .keys()
        .filter(|name| name.starts_with("TIDEGATE_") && !known.contains(&name.as_str()))
        .map(|name| {
            let hint = suggest::hint(name, known.iter().copied());
            format!("{name} is not a setting of tidegate and is ignored{hint}")
        })
        .collect()
}

fn is_namespaces(section: &str, key: &str) -> bool {
    section == "redis" && key == "namespaces"
}

fn text_of(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.trim().to_owned()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string())
        }
        DeValue::Boolean(on) => Some(on.to_string()),
        DeValue::Array(items) => {
            let words: Option<Vec<&str>> =
                items.iter().map(|item| item.get_ref().as_str()).collect();
            words.map(|words| words.join(" "))
        }
        _ => None,
    }
}

fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}
