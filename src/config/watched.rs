//! The files that settings are read from, so that a change of one can be noticed.

use std::path::{Path, PathBuf};

use super::resolve::url_files;
use super::written::{Environment, Written};
use super::{RedisTls, Settings};

/// libpq's word for the system's roots, which is no file.
const SYSTEM_ROOTS: &str = "system";

/// Every file that something was read from, once each.
pub(super) fn watched(
    file: Option<&Path>,
    written: &Written,
    environment: &Environment,
    settings: &Settings,
) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = file.map(Path::to_owned).into_iter().collect();
    files.extend(written.entry("postgres.users_file").map(|entry| PathBuf::from(&entry.text)));
    files.extend(url_files(written, environment));
    let certificates = ["tls.cert", "tls.key", "tls.client_ca", "redis.tls_cert", "redis.tls_key"];
    let certificates = certificates.iter().filter_map(|path| written.entry(path));
    files.extend(certificates.map(|entry| PathBuf::from(&entry.text)));
    let postgres = settings.postgres.iter().flat_map(|side| &side.listeners);
    let postgres = postgres.flat_map(|listener| &listener.upstreams);
    files.extend(postgres.filter_map(|upstream| upstream.sslrootcert.clone()));
    for listener in settings.redis.iter().flat_map(|side| &side.listeners) {
        if let RedisTls::On { ca: Some(ca), .. } = &listener.upstream.tls {
            files.push(ca.clone());
        }
    }
    files.retain(|path| path != Path::new(SYSTEM_ROOTS));
    files.sort_unstable();
    files.dedup();
    files
}
