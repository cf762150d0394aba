//! Programs in other languages, run with the packages that bin/setup installs for them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian puts the JDBC driver.
const JDBC: &str = "/usr/share/java/postgresql.jar";

/// What runs a script of `tests/clients`, in its language.
pub fn interpreter(script: &str) -> Command {
    let source = &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    let (program, arguments) = match source.extension().and_then(OsStr::to_str) {
        Some("py") => (installed().join("python/bin/python"), vec![source.to_owned()]),
        Some("mjs") => ("node".into(), vec![beside_packages(source, &installed().join("node"))]),
        Some("java") => ("java".into(), vec!["-cp".into(), JDBC.into(), source.to_owned()]),
        other => panic!("no language has the ending {other:?}"),
    };
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Node looks for its packages beside the script: gives a copy beside the packages, with what the script imports. Other
/// tests may run the same ones, so each is put there in one step.
fn beside_packages(script: &Path, node: &Path) -> PathBuf {
    for source in [script, &script.with_file_name("crowd.mjs")] {
        let draft = tempfile::NamedTempFile::new_in(node).expect("bin/setup has made the place");
        std::fs::copy(source, draft.path()).expect("a script of ours");
        draft.persist(node.join(source.file_name().expect("a file"))).expect("same directory");
    }
    node.join(script.file_name().expect("a file"))
}

/// Where bin/setup puts the client libraries: beside what cargo builds.
pub fn installed() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp");
    let clients = target.join("clients");
    assert!(clients.exists(), "{} is missing: run bin/setup", clients.display());
    clients
}
