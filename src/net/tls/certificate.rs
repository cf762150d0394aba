//! What is read of a certificate itself: who it is for, its key, and what a login can be bound to. A few fields of X.509
//! (RFC 5280) by hand; whether the certificate is any good is rustls' to say.

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use super::pins::Pin;

const INTEGER: u8 = 0x02;
const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const TELETEX_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0] EXPLICIT`: the version of a certificate, the hash among the parameters of RSASSA-PSS.
const CONTEXT_0: u8 = 0xa0;

/// 2.5.4.3, `commonName`.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 1.2.840.113549.1.1, the RSA family: one number more names the signature.
const PKCS_1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
/// 1.2.840.10045.4, ECDSA's signatures.
const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
/// 2.16.840.1.101.3.4.2, the SHA-2 family.
const NIST_HASHES: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];

/// Channel binding's `tls-server-end-point` (RFC 5929 section 4.1): the certificate's hash by the function its own
/// signature uses, with SHA-256 for MD5 and SHA-1. `None` where the RFC knows no answer (Ed25519), or for what is no
/// certificate.
#[must_use]
pub fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let whole = certificate.as_ref();
    Some(match signature_hash(whole)? {
        Hash::Sha224 => Sha224::digest(whole).to_vec(),
        Hash::Sha256 => Sha256::digest(whole).to_vec(),
        Hash::Sha384 => Sha384::digest(whole).to_vec(),
        Hash::Sha512 => Sha512::digest(whole).to_vec(),
    })
}

/// The pin of the certificate's public key: SHA-256 of its SubjectPublicKeyInfo, as in RFC 7469.
#[must_use]
pub fn key_pin(certificate: &CertificateDer<'_>) -> Option<Pin> {
    let mut fields = Fields(fields_of(certificate.as_ref())?);
    // issuer, validity, subject, subjectPublicKeyInfo
    (0..3).try_for_each(|_| fields.next().map(drop))?;
    let key = fields.next().filter(|key| key.tag == SEQUENCE)?;
    Some(Pin::of(key.whole))
}

/// The last common name of the certificate's subject, as OpenSSL and so Postgres take it.
#[must_use]
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let mut fields = Fields(fields_of(certificate.as_ref())?);
    // issuer, validity, subject
    (0..2).try_for_each(|_| fields.next().map(drop))?;
    let subject = fields.next().filter(|name| name.tag == SEQUENCE)?;
    let sets = Fields(subject.content).filter(|set| set.tag == SET);
    let pairs = sets.flat_map(|set| Fields(set.content)).filter_map(|pair| {
        let mut pair = Fields(pair.content);
        Some((pair.next()?, pair.next()?))
    });
    let names = pairs.filter(|(kind, _)| kind.tag == OBJECT_ID && kind.content == COMMON_NAME);
    let (_, name) = names.last()?;
    let text = matches!(name.tag, UTF8_STRING | PRINTABLE_STRING | TELETEX_STRING | IA5_STRING);
    let name = std::str::from_utf8(name.content).ok().filter(|_| text)?;
    // A NUL would end the name for others.
    (!name.contains('\0')).then(|| name.to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// The hash function of a certificate's signature.
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let outer = Fields(certificate).next().filter(|outer| outer.tag == SEQUENCE)?;
    let mut parts = Fields(outer.content);
    let _to_be_signed = parts.next()?;
    let mut algorithm = Fields(parts.next().filter(|part| part.tag == SEQUENCE)?.content);
    let name = algorithm.next().filter(|name| name.tag == OBJECT_ID)?.content;
    if let Some(number) = name.strip_prefix(PKCS_1) {
        return match number {
            // md5, sha1
            [4 | 5] => Some(Hash::Sha256),
            [10] => pss_hash(algorithm.next()),
            [11] => Some(Hash::Sha256),
            [12] => Some(Hash::Sha384),
            [13] => Some(Hash::Sha512),
            [14] => Some(Hash::Sha224),
            _ => None,
        };
    }
    match name.strip_prefix(ECDSA)? {
        // sha1, and the SHA-2 family below 3
        [1] => Some(Hash::Sha256),
        [3, 1] => Some(Hash::Sha224),
        [3, 2] => Some(Hash::Sha256),
        [3, 3] => Some(Hash::Sha384),
        [3, 4] => Some(Hash::Sha512),
        _ => None,
    }
}

/// RSASSA-PSS names its hash among its parameters (RFC 4055); SHA-1 if it doesn't.
fn pss_hash(parameters: Option<Field<'_>>) -> Option<Hash> {
    let parameters = parameters.filter(|parameters| parameters.tag == SEQUENCE)?;
    let Some(hash) = Fields(parameters.content).next().filter(|first| first.tag == CONTEXT_0)
    else {
        return Some(Hash::Sha256);
    };
    let mut algorithm = Fields(Fields(hash.content).next()?.content);
    match algorithm.next()?.content.strip_prefix(NIST_HASHES) {
        Some([1]) => Some(Hash::Sha256),
        Some([2]) => Some(Hash::Sha384),
        Some([3]) => Some(Hash::Sha512),
        Some([4]) => Some(Hash::Sha224),
        Some(_) => None,
        // 1.3.14.3.2.26, SHA-1, said though it needn't be.
        None => Some(Hash::Sha256),
    }
}

/// What follows serial number and signature algorithm in the part of a certificate that is signed.
fn fields_of(certificate: &[u8]) -> Option<&[u8]> {
    let outer = Fields(certificate).next().filter(|outer| outer.tag == SEQUENCE)?;
    let signed = Fields(outer.content).next().filter(|signed| signed.tag == SEQUENCE)?;
    let mut fields = Fields(signed.content);
    let first = fields.next()?;
    let serial = if first.tag == CONTEXT_0 { fields.next()? } else { first };
    let algorithm = fields.next()?;
    (serial.tag == INTEGER && algorithm.tag == SEQUENCE).then_some(fields.0)
}

/// One element of DER.
#[derive(Clone, Copy)]
struct Field<'a> {
    tag: u8,
    content: &'a [u8],
    /// With tag and length.
    whole: &'a [u8],
}

/// Elements one after the other; ends where no further one is whole.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let (&[tag, length], after) = self.0.split_first_chunk::<2>()?;
        let (length, after) = match length {
            0..=0x7f => (usize::from(length), after),
            // More than 16 MiB is no certificate.
            0x81..=0x83 => {
                let (bytes, after) = after.split_at_checked(usize::from(length & 0x7f))?;
                let length = bytes.iter().fold(0, |all, byte| all << 8 | usize::from(*byte));
                (length, after)
            }
            _ => return None,
        };
        let (content, rest) = after.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - rest.len()];
        self.0 = rest;
        Some(Field { tag, content, whole })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData as _, SignatureAlgorithm};

    use super::*;

    fn made(names: &[&str], algorithm: &'static SignatureAlgorithm) -> (KeyPair, Vec<u8>) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(vec!["db.example.com".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        let certificate = params.self_signed(&key).unwrap();
        (key, certificate.der().to_vec())
    }

    #[test]
    fn a_certificate_says_whose_it_is_and_its_key() {
        let (key, der) = made(&["jörg"], &rcgen::PKCS_ECDSA_P256_SHA256);
        let certificate = CertificateDer::from(der);
        assert_eq!(common_name(&certificate).as_deref(), Some("jörg"));
        assert_eq!(key_pin(&certificate), Some(Pin::of(&key.subject_public_key_info())));
        let (_, der) = made(&[], &rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(common_name(&CertificateDer::from(der)), None);
    }

    #[test]
    fn a_login_is_bound_to_the_hash_that_the_signature_uses() {
        for (algorithm, length) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Some(32)),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Some(48)),
            (&rcgen::PKCS_ED25519, None),
        ] {
            let (_, der) = made(&["x"], algorithm);
            let bound = server_end_point(&CertificateDer::from(der.clone()));
            assert_eq!(bound.as_ref().map(Vec::len), length);
            if length == Some(32) {
                assert_eq!(bound, Some(Sha256::digest(&der).to_vec()));
            }
        }
    }

    /// The outer frame of a certificate whose signature has this algorithm, in base64 of its DER.
    fn signed_by(algorithm: &str) -> Option<Hash> {
        let algorithm = BASE64.decode(algorithm).unwrap();
        let content = [&[SEQUENCE, 0][..], &algorithm].concat();
        let length = u8::try_from(content.len()).unwrap();
        signature_hash(&[&[SEQUENCE, length][..], &content].concat())
    }

    #[test]
    fn algorithms_are_known_as_openssl_writes_them() {
        for (algorithm, hash) in [
            // sha256WithRSAEncryption, sha1WithRSAEncryption, sha512WithRSAEncryption
            ("MA0GCSqGSIb3DQEBCwUA", Some(Hash::Sha256)),
            ("MA0GCSqGSIb3DQEBBQUA", Some(Hash::Sha256)),
            ("MA0GCSqGSIb3DQEBDQUA", Some(Hash::Sha512)),
            // RSASSA-PSS with SHA-384, and with nothing said
            (
                "MEEGCSqGSIb3DQEBCjA0oA8wDQYJYIZIAWUDBAICBQChHDAaBgkqhkiG9w0BAQgwDQYJYIZIAWUDBAICBQCiAwIBMA==",
                Some(Hash::Sha384),
            ),
            ("MA0GCSqGSIb3DQEBCjAA", Some(Hash::Sha256)),
            // Ed25519
            ("MAUGAytlcA==", None),
        ] {
            assert_eq!(signed_by(algorithm), hash, "{algorithm}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_read_beyond_the_end(
            cut in 0_usize..600,
            flips in proptest::collection::vec((0_usize..600, any::<u8>()), 0..8),
        ) {
            let (_, mut der) = made(&["x"], &rcgen::PKCS_ECDSA_P256_SHA256);
            for (at, byte) in flips {
                if let Some(place) = der.get_mut(at) {
                    *place = byte;
                }
            }
            der.truncate(der.len().saturating_sub(cut));
            let certificate = CertificateDer::from(der);
            let _whatever = (common_name(&certificate), key_pin(&certificate), server_end_point(&certificate));
        }
    }
}
