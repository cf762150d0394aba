//! libpq's password file: which password is meant for a server, a database and a user. Source: PostgreSQL documentation,
//! "The Password File".

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::conninfo::Conninfo;
use super::hosts::SOCKET_DIRECTORY;
use super::written::Environment;
use super::{Host, Hosts, Secret, ServerHost};

/// Permissions that others have.
const OF_OTHERS: u32 = 0o077;

/// What was found in the file.
#[derive(Default)]
pub(super) struct Found {
    pub(super) password: Option<Secret>,
    /// The file, if there is one.
    pub(super) file: Option<PathBuf>,
    /// Why it is not used.
    pub(super) warning: Option<String>,
}

impl Found {
    /// There is no need for the file.
    pub(super) fn written(password: &str) -> Self {
        Self { password: Some(Secret::new(password)), ..Self::default() }
    }
}

/// Looks for the password of `user`, in the file that `all` names or in `~/.pgpass`.
///
/// # Errors
/// When the hosts have different passwords: a pool has one.
pub(super) fn look_up(
    all: &Conninfo,
    environment: &Environment,
    hosts: &Hosts,
    (user, database): (&str, &str),
) -> Result<Found, String> {
    let home = environment.get("HOME").cloned().flatten().filter(|home| !home.is_empty());
    let home = || home.map(|home| PathBuf::from(home).join(".pgpass"));
    let Some(file) = all.get("passfile").map(PathBuf::from).or_else(home) else {
        return Ok(Found::default());
    };
    let text = match read(&file) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(Found::default()),
        Err(warning) => {
            return Ok(Found { file: Some(file), warning: Some(warning), password: None });
        }
    };
    // That a host has none is a difference, too: it is not to hear another's.
    let mut passwords = hosts.list.iter().map(|host| {
        let port = host.port.to_string();
        text.lines().find_map(|line| password(line, [&name(host), &port, database, user]))
    });
    let first = passwords.next().flatten();
    if passwords.any(|other| other != first) {
        return Err("has hosts whose passwords differ in the password file, or are there for some only, and tidegate knows \
            one for all hosts of a URL; give them the same, or write one into the URL"
            .to_owned());
    }
    Ok(Found { password: first.map(Secret::new), file: Some(file), warning: None })
}

/// `None` where there is none; an error is a warning, as in libpq.
fn read(file: &Path) -> Result<Option<String>, String> {
    let Ok(found) = std::fs::metadata(file) else { return Ok(None) };
    let shown = file.display();
    if !found.is_file() {
        return Err(format!("the password file {shown} is not used: it is not a plain file"));
    }
    if found.permissions().mode() & OF_OTHERS != 0 {
        return Err(format!(
            "the password file {shown} is not used: others than its owner have access to it; make it so by chmod 0600"
        ));
    }
    let text = std::fs::read_to_string(file);
    text.map(Some).map_err(|error| format!("the password file {shown} is not used: {error}"))
}

/// The name by which a host is looked for.
fn name(host: &ServerHost) -> String {
    match &host.host {
        Host::Unix(path) if path == Path::new(SOCKET_DIRECTORY) => "localhost".to_owned(),
        Host::Unix(path) => path.display().to_string(),
        Host::Tcp(name) => name.clone(),
    }
}

/// The password of a line that is about all four: host, port, database, user.
fn password(line: &str, wanted: [&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    for word in wanted {
        rest = match rest.strip_prefix("*:") {
            Some(rest) => rest,
            None => {
                let (field, after) = field(rest);
                after.filter(|_| field == word)?
            }
        };
    }
    let (password, _) = field(rest);
    (!password.is_empty()).then_some(password)
}

/// What stands before the next colon, and behind it.
fn field(text: &str) -> (String, Option<&str>) {
    let mut field = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            ':' => return (field, Some(&text[at + 1..])),
            '\\' => field.extend(characters.next().map(|(_, escaped)| escaped)),
            other => field.push(other),
        }
    }
    (field, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_libpq_reads_it() {
        let wanted = ["h", "5432", "d", "u"];
        for (line, found) in [
            ("h:5432:d:u:p", Some("p")),
            ("*:*:*:*:p", Some("p")),
            ("h:*:d:u:p\\:q\\\\r", Some("p:q\\r")),
            ("h:5432:d:u:p:more", Some("p")),
            ("h:5432:d:u:", None),
            ("h:5432:d:u", None),
            ("h:5432:d:uu:p", None),
            ("x:5432:d:u:p", None),
            ("h:5433:d:u:p", None),
            ("#h:5432:d:u:p", None),
            ("", None),
        ] {
            assert_eq!(password(line, wanted).as_deref(), found, "{line}");
        }
        assert_eq!(password("a\\:b:1:d:u:p", ["a:b", "1", "d", "u"]).as_deref(), Some("p"));
    }
}
