//! Certificates and keys from PEM files.
//!
//! Keys may be PKCS#8 (also encrypted), PKCS#1 or SEC1, alone or in the file of the certificate, as OpenSSL reads them.

use std::path::Path;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Certified, Error};
use crate::config::tls::KeyPair;

const ENCRYPTED: (&str, &str) = ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "-----END ENCRYPTED PRIVATE KEY-----");
/// OpenSSL's own, of old; its key derivation is MD5.
const ENCRYPTED_OF_OLD: &str = "Proc-Type: 4,ENCRYPTED";

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn content(path: &Path, why: impl Into<String>) -> Error {
    Error::Content { path: path.to_owned(), why: why.into() }
}

/// All certificates of a file; at least one.
///
/// # Errors
/// [`Error::Read`], [`Error::Content`].
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|error| content(path, format!("is no PEM file: {error}")))?;
    if all.is_empty() {
        return Err(content(path, "holds no certificate; it should have lines BEGIN CERTIFICATE"));
    }
    Ok(all)
}

/// A certificate with its key.
///
/// # Errors
/// Each names the file that is wrong.
pub(super) fn pair(pair: &KeyPair) -> Result<Certified, Error> {
    let KeyPair { certfile, keyfile, keyfile_password } = pair;
    let chain = certificates(certfile)?;
    let path = keyfile.as_deref().unwrap_or(certfile);
    let password = keyfile_password.as_ref().map(|password| password.expose().as_str());
    Ok((chain, key(path, &read(path)?, password)?))
}

fn key(path: &Path, bytes: &[u8], password: Option<&str>) -> Result<PrivateKeyDer<'static>, Error> {
    let text = String::from_utf8_lossy(bytes);
    if text.contains(ENCRYPTED_OF_OLD) {
        let why = "the key is encrypted in OpenSSL's old form; convert it: openssl pkcs8 -topk8 -in OLD -out NEW";
        return Err(content(path, why));
    }
    let begin = text.find(ENCRYPTED.0);
    let Some(section) = begin.and_then(|begin| {
        let end = text[begin..].find(ENCRYPTED.1)?;
        Some(&text[begin..begin + end + ENCRYPTED.1.len()])
    }) else {
        return PrivateKeyDer::from_pem_slice(bytes).map_err(|_| {
            content(path, "holds no private key; put it into the certificate's file, or name its own file by keyfile")
        });
    };
    let Some(password) = password else {
        return Err(content(path, "the key is encrypted; give its password by keyfile_password"));
    };
    let broken = |error: String| content(path, format!("the encrypted key cannot be read: {error}"));
    let (_, document) = pkcs8::SecretDocument::from_pem(section).map_err(|error| broken(error.to_string()))?;
    let encrypted = pkcs8::EncryptedPrivateKeyInfo::try_from(document.as_bytes());
    let encrypted = encrypted.map_err(|error| broken(error.to_string()))?;
    match encrypted.decrypt(password) {
        Ok(plain) => Ok(PrivatePkcs8KeyDer::from(plain.as_bytes().to_vec()).into()),
        Err(_) => Err(content(
            path,
            "the key cannot be decrypted: keyfile_password is wrong, or the key's cipher is too old; convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::redact::Secret;

    /// A certificate's file and its key's, in a directory.
    fn files(directory: &Path, key: &str) -> KeyPair {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (certfile, keyfile) = (directory.join("cert.pem"), directory.join("key.pem"));
        std::fs::write(&certfile, made.cert.pem()).unwrap();
        std::fs::write(&keyfile, if key.is_empty() { made.signing_key.serialize_pem() } else { key.to_owned() })
            .unwrap();
        KeyPair { certfile, keyfile: Some(keyfile), keyfile_password: None }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let good = files(directory.path(), "");
        assert!(pair(&good).is_ok());
        let text = |wrong: &KeyPair| pair(wrong).unwrap_err().to_string();
        let both = KeyPair { keyfile: None, ..good.clone() };
        assert!(text(&both).contains("cert.pem: holds no private key"), "{}", text(&both));
        let absent = KeyPair { certfile: directory.path().join("absent"), ..good.clone() };
        assert!(text(&absent).starts_with("read "), "{}", text(&absent));
        let swapped = KeyPair { certfile: good.keyfile.clone().unwrap(), ..good.clone() };
        assert!(text(&swapped).contains("holds no certificate"), "{}", text(&swapped));
        let old = files(directory.path(), "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n");
        assert!(text(&old).contains("openssl pkcs8 -topk8"), "{}", text(&old));
    }

    #[test]
    fn an_encrypted_key_needs_its_password() {
        let directory = tempfile::tempdir().unwrap();
        let plain = files(directory.path(), "");
        let path = plain.keyfile.clone().unwrap();
        let der = PrivateKeyDer::from_pem_file(&path).unwrap();
        let info = pkcs8::PrivateKeyInfo::try_from(der.secret_der()).unwrap();
        let parameters = pkcs8::pkcs5::pbes2::Parameters::pbkdf2_sha256_aes256cbc(2048, b"saltsalt", &[7; 16]).unwrap();
        let encrypted = info.encrypt_with_params(parameters, "open sesame").unwrap();
        std::fs::write(&path, encrypted.to_pem("ENCRYPTED PRIVATE KEY", pkcs8::LineEnding::LF).unwrap().as_bytes())
            .unwrap();
        let with =
            |password: &str| KeyPair { keyfile_password: Some(Secret::new(password.to_owned())), ..plain.clone() };
        assert_eq!(pair(&with("open sesame")).unwrap().1, der);
        assert!(pair(&with("open wheat")).unwrap_err().to_string().contains("keyfile_password is wrong"));
        assert!(pair(&plain).unwrap_err().to_string().contains("give its password by keyfile_password"));
    }
}
