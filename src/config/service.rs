//! libpq's connection service file: options under a name. Source: PostgreSQL documentation, "The Connection Service File".

use std::path::PathBuf;

use super::conninfo::{Conninfo, is_known};
use super::written::Environment;

/// Where Debian's libpq looks for the system's file.
const SYSTEM_DIRECTORY: &str = "/etc/postgresql-common";

/// Adds what the service says that `conninfo` or `PGSERVICE` names, where `conninfo` says nothing itself; gives the file that
/// it was read from.
///
/// # Errors
/// When there is no such service, or it cannot be read; nothing of the file is repeated.
pub(super) fn add(
    conninfo: &mut Conninfo,
    environment: &Environment,
) -> Result<Option<PathBuf>, String> {
    let variable =
        |name: &str| environment.get(name).cloned().flatten().filter(|value| !value.is_empty());
    let named = conninfo.get("service").map(str::to_owned);
    let Some(service) = named.or_else(|| variable("PGSERVICE")) else { return Ok(None) };
    let written = conninfo.get("servicefile").map(str::to_owned);
    let own = written.or_else(|| variable("PGSERVICEFILE")).map(PathBuf::from);
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".pg_service.conf"));
    let users = own.clone().or_else(|| home().filter(|path| path.exists()));
    let directory = variable("PGSYSCONFDIR").unwrap_or(SYSTEM_DIRECTORY.to_owned());
    let systems = PathBuf::from(directory).join("pg_service.conf");
    for path in users.into_iter().chain(Some(systems).filter(|path| path.exists())) {
        let text = std::fs::read_to_string(&path).map_err(|error| {
            format!("names a service, whose file {} cannot be read: {error}", path.display())
        })?;
        let found = parse(&text, &service).map_err(|problem| {
            format!("names a service, whose file {} {problem}", path.display())
        })?;
        if let Some(options) = found {
            conninfo.add_missing(options);
            return Ok(Some(path));
        }
    }
    Err("names a service that no service file has; write it into ~/.pg_service.conf, or name its file in PGSERVICEFILE"
        .to_owned())
}

/// The options of a service, if the file has it. What comes first counts.
fn parse(text: &str, service: &str) -> Result<Option<Vec<(String, String)>>, String> {
    let mut found: Option<Vec<(String, String)>> = None;
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(group) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            let is_it = group.strip_prefix(service).is_some_and(|rest| rest.starts_with(']'));
            found = is_it.then(Vec::new);
            continue;
        }
        let Some(options) = &mut found else { continue };
        if line.starts_with("ldap") {
            return Err(format!(
                "asks LDAP in line {number}, which tidegate does not; write the options out"
            ));
        }
        match line.split_once('=') {
            Some(("service", _)) => {
                return Err(format!(
                    "names another service in line {number}; write its options out"
                ));
            }
            Some((key, value)) if is_known(key) => {
                if !options.iter().any(|(known, _)| known == key) {
                    options.push((key.to_owned(), value.to_owned()));
                }
            }
            _ => {
                return Err(format!(
                    "has no option of libpq's in line {number}; it must be name=value"
                ));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_read_as_libpq_reads_it() {
        let text =
            "# of ours\n[other]\nhost=o\n\n [mine] \nhost=h\n  port=7\nhost=late\n[mine]\nuser=u\n";
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(parse(text, "mine"), Ok(Some(vec![pair("host", "h"), pair("port", "7")])));
        assert_eq!(parse(text, "other"), Ok(Some(vec![pair("host", "o")])));
        assert_eq!(parse(text, "min"), Ok(None));
        for (text, part) in [
            ("[a]\nservice=b", "line 2"),
            ("[a]\nhunter2", "line 2"),
            ("[a]\n\nhunter=2", "line 3"),
            ("[a]\nldap://hunter2", "LDAP"),
        ] {
            let error = parse(text, "a").unwrap_err();
            assert!(error.contains(part) && !error.contains("hunter"), "{error}");
        }
    }
}
