//! Where a pooled variable's URL is: in the variable, or in a file that another one names, as secrets are mounted into
//! containers. A file may change while the process lives; its environment can't.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use super::ConfigError;
use super::written::{Entry, Environment};

/// Behind a variable's name: it names the file with the value.
const FILE: &str = "_FILE";
/// Longest file with a URL.
const FILE_BYTES: u64 = 64 * 1024;

/// A variable with a URL, or with the name of its file.
#[derive(Debug)]
pub(super) enum UrlSource {
    Variable(String),
    File(String),
}

/// Where the URL of the variable `name` is: `TIDEGATE_<name>` comes first, then the variable itself; of each its file, if it
/// is not set.
pub(super) fn url_source(environment: &Environment, name: &str) -> Option<UrlSource> {
    sources(name).into_iter().find(|source| environment.contains_key(source.variable()))
}

/// Every variable but `name` itself that its URL may be taken from.
pub(super) fn other_sources(name: &str) -> impl Iterator<Item = String> {
    let variables = sources(name).map(|source| source.variable().to_owned());
    variables.into_iter().filter(move |variable| variable != name)
}

/// Where the URL of `name` may be, the first one first.
fn sources(name: &str) -> [UrlSource; 4] {
    [
        UrlSource::Variable(format!("TIDEGATE_{name}")),
        UrlSource::File(format!("TIDEGATE_{name}{FILE}")),
        UrlSource::Variable(name.to_owned()),
        UrlSource::File(format!("{name}{FILE}")),
    ]
}

/// The file with the URL of the variable `name`, if it is in one.
pub(super) fn url_file(environment: &Environment, name: &str) -> Option<PathBuf> {
    match url_source(environment, name)? {
        UrlSource::Variable(_) => None,
        UrlSource::File(variable) => environment.get(&variable)?.as_ref().map(PathBuf::from),
    }
}

impl UrlSource {
    fn variable(&self) -> &str {
        let (Self::Variable(name) | Self::File(name)) = self;
        name
    }

    /// The URL.
    ///
    /// # Errors
    /// When there is no text. What a file holds is not shown.
    pub(super) fn read(self, environment: &Environment) -> Result<Entry, ConfigError> {
        let source = self.variable();
        let Some(text) = environment.get(source).cloned().flatten() else {
            return Err(ConfigError::new(source, "is not UTF-8 text"));
        };
        match self {
            Self::Variable(source) => Ok(Entry { text: text.trim().to_owned(), source }),
            Self::File(source) => {
                let read = read(&text).map_err(|problem| {
                    ConfigError::new(&source, problem).with_value(text.as_str())
                })?;
                Ok(Entry { text: read, source })
            }
        }
    }
}

fn read(path: &str) -> Result<String, String> {
    let must = "it must be a file that holds a URL and nothing else";
    let unreadable = |error| format!("cannot be read: {error}; {must}");
    let file = File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    let read = file.take(FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > FILE_BYTES {
        return Err(format!("is longer than {FILE_BYTES} bytes; {must}"));
    }
    match text.trim() {
        "" => Err(format!("is empty; {must}")),
        text => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())))
            .collect()
    }

    #[test]
    fn a_url_may_be_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " postgres://u:p@h/d\n").unwrap();
        let path = file.path().to_str().unwrap();
        let read = |variables: &[(&str, &str)]| {
            let environment = environment(variables);
            let entry = url_source(&environment, "X")?.read(&environment).unwrap();
            Some((entry.text, entry.source))
        };
        let text = |text: &str, source: &str| Some((text.to_owned(), source.to_owned()));
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[("X_FILE", path)]), text("postgres://u:p@h/d", "X_FILE"));
        assert_eq!(read(&[("X_FILE", path), ("X", "local")]), text("local", "X"));
        let ours = [("TIDEGATE_X_FILE", path), ("X", "local")];
        assert_eq!(read(&ours), text("postgres://u:p@h/d", "TIDEGATE_X_FILE"));
        assert_eq!(url_file(&environment(&ours), "X"), Some(path.into()));
        assert_eq!(url_file(&environment(&[("X", "local"), ("X_FILE", path)]), "X"), None);
    }

    #[test]
    fn a_file_that_is_none_is_named_and_what_it_holds_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let problem = |path: &str| {
            let environment = environment(&[("X_FILE", path)]);
            let source = url_source(&environment, "X").unwrap();
            source.read(&environment).unwrap_err().to_string()
        };
        assert!(
            problem("/nowhere/at/all").contains("X_FILE = \"/nowhere/at/all\": cannot be read")
        );
        assert!(problem(path).contains("empty"));
        std::fs::write(file.path(), "hunter2".repeat(10_000)).unwrap();
        let long = problem(path);
        assert!(long.contains("longer than 65536 bytes") && !long.contains("hunter2"));
        std::fs::write(file.path(), b"hunter2\xff").unwrap();
        assert!(!problem(path).contains("hunter2"));
        assert!(problem("/dev/zero").contains("longer"), "it ends");
    }
}
