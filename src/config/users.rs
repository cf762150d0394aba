//! The users file: who may come in besides the users of the URLs, in the form of PgBouncer's `userlist.txt`.
//!
//! A line is `"user" "password"`; a quote within one is written twice. The password is written out, which also logs tidegate in at
//! the server, or a SCRAM-SHA-256 verifier as Postgres keeps it, which only tells whether the client knows it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::Secret;
use crate::postgres::scram::Verifier;

/// What is known of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserSecret {
    /// The password.
    Clear(Secret),
    /// Enough to check a password.
    Verifier(Verifier),
}

/// The users of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    by_name: BTreeMap<String, UserSecret>,
}

/// What the file holds, and what deserves a word.
pub(super) struct UsersFile {
    pub(super) users: Users,
    pub(super) warning: Option<String>,
}

impl Users {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// What is known of `user`.
    #[must_use]
    pub fn get(&self, user: &str) -> Option<&UserSecret> {
        self.by_name.get(user)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &UserSecret)> {
        self.by_name.iter().map(|(name, secret)| (name.as_str(), secret))
    }

    /// Reads the file's text; the error names the line and shows nothing of it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut users = Self::default();
        for (line, number) in text.lines().zip(1..) {
            let line = line.trim();
            if line.is_empty() || line.starts_with(';') || line.starts_with('#') {
                continue;
            }
            let (name, secret) =
                user(line).map_err(|problem| format!("line {number}: {problem}"))?;
            if users.by_name.insert(name.clone(), secret).is_some() {
                return Err(format!("line {number}: the user \"{name}\" is there already"));
            }
        }
        Ok(users)
    }
}

impl UsersFile {
    /// Reads the file at `path`; the error says what to do.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            format!("cannot be read: {error}; it must be a file with a line \"user\" \"password\" for each user")
        })?;
        let mode = std::fs::metadata(path).map_or(0, |about| about.permissions().mode() & 0o777);
        let warning = (mode & 0o077 != 0).then(|| {
            let path = path.display();
            format!("{path} holds passwords and others on this machine can read it (mode {mode:o}): chmod 600 {path}")
        });
        Ok(Self { users: Users::parse(&text)?, warning })
    }
}

fn user(line: &str) -> Result<(String, UserSecret), &'static str> {
    const FORM: &str = "must be \"user\" \"password\", both in double quotes";
    let (name, rest) = quoted(line).ok_or(FORM)?;
    let (secret, rest) = quoted(rest.trim_start()).ok_or(FORM)?;
    if !rest.trim().is_empty() {
        return Err("has something behind the password; a quote within it is written twice");
    }
    if name.is_empty() || secret.is_empty() {
        return Err("has an empty user or password");
    }
    if is_md5(&secret) {
        return Err(
            "has an md5 hash, which does not do for SCRAM-SHA-256; write the password, or the SCRAM-SHA-256 \
            verifier from pg_authid.rolpassword",
        );
    }
    if !secret.starts_with("SCRAM-SHA-256$") {
        return Ok((name, UserSecret::Clear(Secret::new(secret))));
    }
    let verifier = Verifier::parse(&secret)
        .ok_or("has a SCRAM-SHA-256 verifier that is cut short or misspelt")?;
    Ok((name, UserSecret::Verifier(verifier)))
}

/// The text between double quotes at the beginning of `text`, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut value = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        value.push_str(part);
        match after.strip_prefix('"') {
            None => return Some((value, after)),
            Some(further) => {
                value.push('"');
                rest = further;
            }
        }
    }
}

fn is_md5(secret: &str) -> bool {
    let hash = secret.strip_prefix("md5");
    hash.is_some_and(|hash| hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_pgbouncer_reads_them() {
        let verifier = "SCRAM-SHA-256$4096:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\
            AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let text = format!(
            "; users\n\n\"ann\" \"a \"\"b\"\" c\"\n  \"b\"\"ob\"\t\"{verifier}\"  \n# end\n"
        );
        let users = Users::parse(&text).unwrap();
        assert_eq!(users.get("ann"), Some(&UserSecret::Clear(Secret::new("a \"b\" c"))));
        assert!(matches!(users.get("b\"ob"), Some(UserSecret::Verifier(_))));
        assert_eq!(users.iter().count(), 2);
    }

    #[test]
    fn a_bad_line_is_named_and_not_shown() {
        for (line, part) in [
            ("ann hunter2", "double quotes"),
            ("\"ann\"", "double quotes"),
            ("\"ann\" \"hunter2", "double quotes"),
            ("\"ann\" \"hunter2\" more", "behind the password"),
            ("\"ann\" \"hunter\"2\"", "behind the password"),
            ("\"\" \"hunter2\"", "empty"),
            ("\"ann\" \"\"", "empty"),
            ("\"ann\" \"md50123456789abcdef0123456789abcdef\"", "md5"),
            ("\"ann\" \"SCRAM-SHA-256$hunter2\"", "cut short"),
            ("\"first\" \"hunter2\"", "already"),
        ] {
            let error = Users::parse(&format!("\"first\" \"x\"\n\n{line}\n")).unwrap_err();
            assert!(error.starts_with("line 3: ") && error.contains(part), "{line}: {error}");
            assert!(!error.contains("hunter"), "{error}");
        }
    }
}
