//! What is wrong with a setting: which one, what it says, what it may say.

use std::fmt;

/// A setting that cannot be taken. The text never holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    setting: String,
    value: Option<String>,
    problem: String,
}

impl ConfigError {
    /// `setting` as its writer knows it (variable, flag, file and line); `problem` says what is
    /// allowed.
    pub(crate) fn new(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { setting: setting.into(), value: None, problem: problem.into() }
    }

    /// Shows the value too; masked by the caller if it may hold a password.
    pub(super) fn with_value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.setting)?;
        if let Some(value) = &self.value {
            write!(f, " = \"{value}\"")?;
        }
        write!(f, ": {}", self.problem)
    }
}
