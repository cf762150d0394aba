//! Public keys that a server must have: configured, or remembered from the first time.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};

/// Longest file of remembered keys, in bytes.
const FILE_MOST_BYTES: u64 = 1024 * 1024;

/// A public key by its hash: SHA-256 of the SubjectPublicKeyInfo (RFC 7469).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

/// Which keys a server may have. None named and no file: any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pins {
    /// The server has one of these.
    pub keys: Vec<Pin>,
    /// Otherwise it has the key that is written here for its host and port; where none is, the key is taken and written
    /// down (trust on first use).
    pub file: Option<PathBuf>,
}

impl Pin {
    pub(super) fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Reads base64 as curl's `--pinnedpubkey` has it (`sha256//…`), or without the prefix.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("sha256//").or(text.strip_prefix("sha256/")).unwrap_or(text);
        BASE64.decode(text).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256//{}", BASE64.encode(self.0))
    }
}

impl Pins {
    /// Whether any key will do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.file.is_none()
    }

    /// Whether the server at `place` (`host:port`) may have `key`; remembers it if it is the first. Reads and writes a file.
    ///
    /// # Errors
    /// When it has another key than it should, or the file cannot be had.
    pub(super) fn check(&self, place: &str, key: Pin) -> io::Result<()> {
        if self.keys.contains(&key) {
            return Ok(());
        }
        let Some(file) = &self.file else {
            return if self.keys.is_empty() { Ok(()) } else { Err(wrong_key(place, key, None)) };
        };
        let said = |error: io::Error| {
            io::Error::new(error.kind(), format!("the pin file {}: {error}", file.display()))
        };
        match remembered(file, place).map_err(said)? {
            Some(known) if known == key => Ok(()),
            Some(_other) => Err(wrong_key(place, key, Some(file))),
            None if self.keys.is_empty() => {
                remember(file, place, key).map_err(said)?;
                tracing::warn!(
                    server = place, %key, file = %file.display(),
                    "the server's public key is trusted from now on, as it is the first seen; compare it once"
                );
                Ok(())
            }
            None => Err(wrong_key(place, key, None)),
        }
    }
}

fn wrong_key(place: &str, key: Pin, file: Option<&Path>) -> io::Error {
    let cure = match file {
        Some(file) => format!("take its line out of {}", file.display()),
        None => "put it among the pins".to_owned(),
    };
    let message = format!(
        "{place} has another public key ({key}) than the pinned one: somebody may be in the middle; if the server was \
         really given a new key, {cure}"
    );
    io::Error::new(io::ErrorKind::PermissionDenied, message)
}

/// The last key written down for `place`.
fn remembered(file: &Path, place: &str) -> io::Result<Option<Pin>> {
    let mut text = String::new();
    match File::open(file) {
        Ok(file) => file.take(FILE_MOST_BYTES).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut found = None;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some((known, key)) = line.split_once(char::is_whitespace) else { continue };
        if known == place {
            // What cannot be read must not pass for a server never seen.
            let key = Pin::parse(key.trim()).ok_or_else(|| {
                let message = format!("the line of {place} holds no SHA-256 in base64");
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?;
            found = Some(key);
        }
    }
    Ok(found)
}

/// One write at the end, so that two processes that meet here leave two whole lines.
fn remember(file: &Path, place: &str, key: Pin) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    file.write_all(format!("{place} {key}\n").as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_remembered_for_its_server_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pins");
        let pins = Pins { keys: Vec::new(), file: Some(file.clone()) };
        let (one, other) = (Pin::of(b"one"), Pin::of(b"other"));
        pins.check("db:5432", one).unwrap();
        pins.check("db:5432", one).unwrap();
        pins.check("db:5433", other).unwrap();
        let refused = pins.check("db:5432", other).unwrap_err().to_string();
        assert!(refused.contains("another public key") && refused.contains("pins"), "{refused}");
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, format!("db:5432 {one}\ndb:5433 {other}\n"));
        std::fs::write(&file, "# mine\ndb:5432 garbage\n").unwrap();
        assert!(pins.check("db:5432", one).is_err(), "garbage is no leave to take any key");
    }

    #[test]
    fn configured_keys_win() {
        let (one, other) = (Pin::of(b"one"), Pin::of(b"other"));
        let pins = Pins { keys: vec![one], file: None };
        pins.check("db:5432", one).unwrap();
        assert!(pins.check("db:5432", other).is_err());
        let directory = tempfile::tempdir().unwrap();
        let both = Pins { file: Some(directory.path().join("pins")), ..pins };
        assert!(both.check("db:5432", other).is_err(), "no first use where a key is configured");
        Pins::default().check("db:5432", other).unwrap();
    }

    #[test]
    fn pins_are_written_as_curl_writes_them() {
        let pin = Pin::of(b"key");
        let text = pin.to_string();
        let bare = text.strip_prefix("sha256//").unwrap();
        assert_eq!((Pin::parse(&text), Pin::parse(bare)), (Some(pin), Some(pin)));
        for wrong in ["", "sha256//", "sha256//AAAA", "md5//AAAA", &text[..20]] {
            assert_eq!(Pin::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_had_refuses() {
        let pins = Pins { keys: Vec::new(), file: Some("/nonexistent/pins".into()) };
        let refused = pins.check("db:5432", Pin::of(b"one")).unwrap_err().to_string();
        assert!(refused.contains("/nonexistent/pins"), "{refused}");
    }
}
