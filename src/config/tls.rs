//! Which certificates a node shows, and whom it believes: the files, not what is in them.
//!
//! Patroni's keys for the main port and for its clients, etcd's for the extra listener. Deliberately absent: reading
//! certificates (`crate::tls`), so that a file can be checked on any machine.
//!
//! Source: reference sections 1.6 and 5; etcd's `--cert-file`, `--key-file`, `--client-cert-auth`, `--trusted-ca-file`.

use std::path::PathBuf;

use super::check::absolute;
use super::reader::Reader;
use crate::telemetry::redact::Secret;

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The certificate, then those that signed it.
    pub certfile: PathBuf,
    /// Its key; none = in the same file.
    pub keyfile: Option<PathBuf>,
    /// What the key is encrypted with.
    pub keyfile_password: Option<Secret<String>>,
}

/// Whether clients must show a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VerifyClient {
    /// They are not asked.
    #[default]
    None,
    /// For requests that change something.
    Optional,
    /// For everything.
    Required,
}

/// How a listener speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// What it shows.
    pub pair: KeyPair,
    /// Who signs clients' certificates.
    pub cafile: Option<PathBuf>,
    /// Whether clients must show one.
    pub verify_client: VerifyClient,
    /// The cipher suites of TLS 1.2, in OpenSSL's words; none = all that are good.
    pub ciphers: Option<String>,
}

/// How this program speaks TLS to main ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Believe whoever answers. With a certificate of one's own: without looking at the host name.
    pub insecure: bool,
    /// Who signs the nodes' certificates.
    pub cacert: Option<PathBuf>,
    /// Who does, if `cacert` is none: `restapi.cafile`. If both are: whom this machine trusts.
    pub cafile: Option<PathBuf>,
    /// What to show.
    pub pair: Option<KeyPair>,
}

fn file(reader: &mut Reader<'_>, key: &str) -> Option<PathBuf> {
    reader.optional_text(key).map(|text| absolute(&text))
}

fn pair(reader: &mut Reader<'_>, section: &str) -> Option<KeyPair> {
    let certfile = file(reader, &format!("{section}.certfile"));
    let keyfile = file(reader, &format!("{section}.keyfile"));
    let keyfile_password = reader.optional_secret(&format!("{section}.keyfile_password"));
    if certfile.is_none() && (keyfile.is_some() || keyfile_password.is_some()) {
        reader
            .problem(&format!("{section}.keyfile"), format!("stands without {section}.certfile; add the certificate"));
    }
    Some(KeyPair { certfile: certfile?, keyfile, keyfile_password })
}

/// The main port's: none without a certificate.
pub(super) fn read_restapi(reader: &mut Reader<'_>) -> Option<ServerTls> {
    let pair = pair(reader, "restapi");
    let cafile = file(reader, "restapi.cafile");
    let verify_client = match reader.word("restapi.verify_client").as_str() {
        "optional" => VerifyClient::Optional,
        "required" => VerifyClient::Required,
        _ => VerifyClient::None,
    };
    let ciphers = reader.optional_text("restapi.ciphers");
    if verify_client != VerifyClient::None {
        if pair.is_none() {
            reader.problem(
                "restapi.verify_client",
                "asks for certificates on a port without TLS; add restapi.certfile, or remove it",
            );
        } else if cafile.is_none() {
            reader.problem(
                "restapi.verify_client",
                "does not say whose certificates are good; add restapi.cafile, the authority that signs clients'",
            );
        }
    }
    Some(ServerTls { pair: pair?, cafile, verify_client, ciphers })
}

/// The extra listener's for etcd's clients: none without a certificate.
pub(super) fn read_etcd(reader: &mut Reader<'_>) -> Option<ServerTls> {
    let certfile = file(reader, "etcd.cert_file");
    let keyfile = file(reader, "etcd.key_file");
    let cafile = file(reader, "etcd.trusted_ca_file");
    // As etcd: naming an authority alone asks for nothing.
    let asked = reader.flag("etcd.client_cert_auth");
    if certfile.is_none() && (keyfile.is_some() || asked) {
        reader.problem("etcd.cert_file", "is missing, and the section speaks of TLS; add it, or remove the others");
    }
    if certfile.is_some() && asked && cafile.is_none() {
        reader.problem("etcd.client_cert_auth", "does not say whose certificates are good; add etcd.trusted_ca_file");
    }
    if certfile.is_some() && !reader.has("etcd.listen") {
        reader.warning("etcd.cert_file", "has no effect without etcd.listen; the main port shows restapi.certfile");
    }
    let pair = KeyPair { certfile: certfile?, keyfile, keyfile_password: None };
    let verify_client = if asked { VerifyClient::Required } else { VerifyClient::None };
    Some(ServerTls { pair, cafile, verify_client, ciphers: None })
}

/// What `howdah list` and its like, and members among each other, do.
pub(super) fn read_ctl(reader: &mut Reader<'_>) -> ClientTls {
    ClientTls {
        insecure: reader.flag("ctl.insecure"),
        cacert: file(reader, "ctl.cacert"),
        cafile: file(reader, "restapi.cafile"),
        pair: pair(reader, "ctl"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::config::check::check;

    fn checked(restapi: Value, etcd: Value) -> Result<crate::config::Config, String> {
        let mut tree = json!({"scope": "s", "name": "n1", "restapi": restapi, "etcd": etcd});
        tree["restapi"]["listen"] = json!("127.0.0.1:8008");
        check(&tree, Path::new("x.yml")).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn a_certificate_makes_a_port_speak_tls() {
        let config = checked(json!({}), json!({})).unwrap();
        assert_eq!((config.restapi.tls, config.etcd_tls), (None, None));
        let config = checked(
            json!({"certfile": "/c", "keyfile": "/k", "cafile": "/a", "verify_client": "optional"}),
            json!({"listen": "127.0.0.1:2379", "cert_file": "/e", "client_cert_auth": true, "trusted_ca_file": "/t"}),
        )
        .unwrap();
        let tls = config.restapi.tls.unwrap();
        assert_eq!((tls.pair.keyfile, tls.verify_client), (Some(PathBuf::from("/k")), VerifyClient::Optional));
        let etcd = config.etcd_tls.unwrap();
        assert_eq!((etcd.verify_client, etcd.cafile), (VerifyClient::Required, Some(PathBuf::from("/t"))));
    }

    #[test]
    fn what_would_protect_nothing_is_refused() {
        let wrong = |restapi, etcd, part: &str| {
            let text = checked(restapi, etcd).unwrap_err();
            assert!(text.contains(part), "{text}");
        };
        wrong(json!({"keyfile": "/k"}), json!({}), "restapi.keyfile: stands without restapi.certfile");
        wrong(json!({"verify_client": "required"}), json!({}), "on a port without TLS");
        wrong(json!({"certfile": "/c", "verify_client": "optional"}), json!({}), "add restapi.cafile");
        wrong(json!({"verify_client": "always"}), json!({}), "none, optional, required");
        wrong(json!({}), json!({"listen": "127.0.0.1:2379", "client_cert_auth": true}), "etcd.cert_file: is missing");
        wrong(
            json!({}),
            json!({"listen": "127.0.0.1:2379", "cert_file": "/c", "client_cert_auth": true}),
            "trusted_ca_file",
        );
    }
}
