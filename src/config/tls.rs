//! What was written about TLS: the listeners' certificate, who we are to a server, and which keys a server may have.

use std::path::PathBuf;

use super::conninfo::Conninfo;
use super::uri::Uri;
use super::written::Written;
use super::{
    ChannelBinding, ClientCertificate, ConfigError, ListenerEncryption, SslMode, SslNegotiation,
    TlsMode,
};
use crate::net::{Certificate, Identity, Pin, Pins};

const MODES: [(&str, TlsMode); 3] =
    [("off", TlsMode::Off), ("on", TlsMode::On), ("require", TlsMode::Require)];

/// The encryption of one side's listeners; `path` is where its mode stands.
pub(super) fn listener(written: &Written, path: &str) -> Result<ListenerEncryption, ConfigError> {
    let file = |path| written.entry(path).map(|entry| PathBuf::from(&entry.text));
    let identity = identity(file("tls.cert"), file("tls.key"));
    let certificate = match (identity, written.entry("tls.cert").or(written.entry("tls.key"))) {
        (Ok(None), _) => Certificate::Made,
        (Ok(Some(identity)), _) => Certificate::Files(identity),
        (Err(OneOfTwo), Some(entry)) => {
            return Err(
                entry.wrong("a certificate and its key go together: set tls.cert and tls.key")
            );
        }
        (Err(OneOfTwo), None) => Certificate::Made,
    };
    let client_ca = file("tls.client_ca");
    let default = if client_ca.is_some() { TlsMode::Require } else { TlsMode::On };
    let mode = written.choice(path, default, &MODES)?;
    if let (Some(entry), Some(_), TlsMode::On) = (written.entry(path), &client_ca, mode) {
        return Err(entry.wrong(
            "lets clients in without TLS, so without the certificate that tls.client_ca asks for; use require, or off",
        ));
    }
    Ok(ListenerEncryption { mode, certificate, client_ca })
}

/// What a client's certificate is good for besides the handshake.
pub(super) fn client_certificate(written: &Written) -> Result<ClientCertificate, ConfigError> {
    let words = [
        ("verify-ca", ClientCertificate::Any),
        ("verify-full", ClientCertificate::OfUser),
        ("cert", ClientCertificate::InsteadOfPassword),
    ];
    let chosen = written.choice("tls.client_cert", ClientCertificate::Any, &words)?;
    match written.entry("tls.client_cert") {
        Some(entry)
            if chosen != ClientCertificate::Any && written.entry("tls.client_ca").is_none() =>
        {
            Err(entry.wrong("asks for clients' certificates: name their root in tls.client_ca"))
        }
        _ => Ok(chosen),
    }
}

/// Which keys the servers of one side may have.
pub(super) fn pins(written: &Written, section: &str) -> Result<Pins, ConfigError> {
    let mut pins = Pins::default();
    if let Some(entry) = written.entry(&format!("{section}.pin")) {
        for word in entry.text.split_ascii_whitespace() {
            pins.keys.push(Pin::parse(word).ok_or_else(|| {
                entry.wrong("must be SHA-256 hashes of public keys in base64, such as sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")
            })?);
        }
    }
    let file = written.entry(&format!("{section}.pin_file"));
    pins.file = file.map(|entry| PathBuf::from(&entry.text));
    Ok(pins)
}

/// One of a pair was named without the other.
#[derive(Debug)]
pub(super) struct OneOfTwo;

/// A certificate and its key, if they were named.
pub(super) fn identity(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<Identity>, OneOfTwo> {
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key })),
        _ => Err(OneOfTwo),
    }
}

/// What a Postgres URL, or libpq's variables, say beside `sslmode` and `sslrootcert`.
pub(super) struct PostgresTls {
    pub(super) negotiation: SslNegotiation,
    pub(super) channel_binding: ChannelBinding,
    pub(super) identity: Option<Identity>,
}

impl PostgresTls {
    /// The error repeats nothing of the text.
    pub(super) fn read(all: &Conninfo, sslmode: SslMode) -> Result<Self, String> {
        let negotiation = match all.get("sslnegotiation") {
            None | Some("postgres") => SslNegotiation::Postgres,
            Some("direct") if matches!(sslmode, SslMode::Disable | SslMode::Prefer) => {
                return Err("has sslnegotiation=direct, which goes with sslmode=require, verify-ca or verify-full only"
                    .to_owned());
            }
            Some("direct") => SslNegotiation::Direct,
            Some(_) => {
                return Err("has an sslnegotiation that is neither postgres nor direct".to_owned());
            }
        };
        let channel_binding = match all.get("channel_binding") {
            None | Some("prefer") => ChannelBinding::Prefer,
            Some("disable") => ChannelBinding::Disable,
            Some("require") if sslmode == SslMode::Disable => {
                return Err(
                    "has channel_binding=require, which needs TLS: sslmode=require".to_owned()
                );
            }
            Some("require") => ChannelBinding::Require,
            Some(_) => {
                return Err(
                    "has a channel_binding that is none of disable, prefer, require".to_owned()
                );
            }
        };
        let file = |key| all.get(key).map(PathBuf::from);
        let found = identity(file("sslcert"), file("sslkey"));
        let identity = found.map_err(|OneOfTwo| {
            "has one of sslcert and sslkey (or of PGSSLCERT and PGSSLKEY); a certificate and its key go together"
        })?;
        let shown = all.get("sslcertmode") != Some("disable");
        Ok(Self { negotiation, channel_binding, identity: identity.filter(|_| shown) })
    }
}

/// What redis-py calls `ssl_certfile` and `ssl_keyfile`.
pub(super) fn redis_identity(uri: &Uri) -> Result<Option<Identity>, String> {
    let option = |key: &str| {
        let written = uri.query.iter().rev().find(|(known, _)| known == key);
        written.map(|(_, value)| PathBuf::from(value)).filter(|path| !path.as_os_str().is_empty())
    };
    identity(option("ssl_certfile"), option("ssl_keyfile")).map_err(|OneOfTwo| {
        "has one of ssl_certfile and ssl_keyfile; a certificate and its key go together".to_owned()
    })
}
