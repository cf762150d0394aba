//! The table of commands is what Redis says: bin/commands writes the same again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::process::Command;

#[test]
fn the_table_is_what_live_servers_say() {
    let check = Command::new("python3")
        .args(["bin/commands", "--check"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("bin/setup installs Python");
    let said = String::from_utf8_lossy(&check.stderr);
    assert!(check.status.success(), "{said}");
}
