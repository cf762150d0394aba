//! The files that settings are read from, so that a change of one can be noticed.

use std::path::{Path, PathBuf};

use super::PooledVariable;
use super::resolve::{Resolved, url_files};
use super::written::{Environment, Written};

/// Every file that something was read from, once each.
pub(super) fn watched(
    file: Option<&Path>,
    written: &Written,
    environment: &Environment,
    resolved: &Resolved,
) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = file.map(Path::to_owned).into_iter().collect();
    files.extend(written.entry("postgres.users_file").map(|entry| PathBuf::from(&entry.text)));
    files.extend(url_files(written, environment));
    files.extend(resolved.settings.tls_files());
    files.extend(resolved.variables.iter().flat_map(PooledVariable::files).cloned());
    files.sort_unstable();
    files.dedup();
    files
}
