//! OpenSSL's words for cipher suites, as far as there are such suites here.
//!
//! `restapi.ciphers` concerns TLS 1.2, as in Patroni; TLS 1.3 is always spoken. All suites here are good ones, so the
//! list can only leave some out.

use tokio_rustls::rustls::{CipherSuite, SupportedCipherSuite};

use super::{Error, provider};

/// OpenSSL's name and what else selects the suite.
const SUITES: &[(CipherSuite, &str, &[&str])] = &[
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        &["AES256", "AESGCM", "AES", "aECDSA", "ECDSA", "SHA384"],
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        &["AES128", "AESGCM", "AES", "aECDSA", "ECDSA", "SHA256"],
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        &["CHACHA20", "aECDSA", "ECDSA"],
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-RSA-AES256-GCM-SHA384",
        &["AES256", "AESGCM", "AES", "aRSA", "RSA", "SHA384"],
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-RSA-AES128-GCM-SHA256",
        &["AES128", "AESGCM", "AES", "aRSA", "RSA", "SHA256"],
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        "ECDHE-RSA-CHACHA20-POLY1305",
        &["CHACHA20", "aRSA", "RSA"],
    ),
];

/// What every suite here is.
const ALL: &[&str] = &[
    "ALL",
    "DEFAULT",
    "COMPLEMENTOFDEFAULT",
    "HIGH",
    "ECDHE",
    "EECDH",
    "kECDHE",
    "kEECDH",
    "ECDH",
    "TLSv1.2",
    "ECDHE-ECDSA",
    "ECDHE-RSA",
];

/// The suites that a list of OpenSSL's leaves: those of TLS 1.3, and what it names of TLS 1.2.
///
/// # Errors
/// [`Error::Ciphers`] when nothing of TLS 1.2 is left: a list that should restrict and selects nothing is a mistake.
pub(super) fn select(list: &str) -> Result<Vec<SupportedCipherSuite>, Error> {
    let mut chosen: Vec<CipherSuite> = Vec::new();
    let mut banned: Vec<CipherSuite> = Vec::new();
    for word in list.split([':', ',', ' ', ';']).filter(|word| !word.is_empty() && !word.starts_with('@')) {
        let (sign, name) = match word.split_at(1) {
            (sign @ ("!" | "-" | "+"), name) => (sign, name),
            _ => ("", word),
        };
        let named: Vec<CipherSuite> =
            SUITES.iter().filter(|(_, own, kinds)| matches(name, own, kinds)).map(|(suite, ..)| *suite).collect();
        match sign {
            "!" => banned.extend(named),
            "-" => chosen.retain(|suite| !named.contains(suite)),
            // Only the order changes, and the order is the server's here.
            "+" => {}
            _ => chosen.extend(named),
        }
    }
    chosen.retain(|suite| !banned.contains(suite));
    if chosen.is_empty() {
        let names: Vec<&str> = SUITES.iter().map(|(_, name, _)| *name).collect();
        return Err(Error::Ciphers(format!(
            "{list:?} selects no suite that is spoken here; those are {}",
            names.join(":")
        )));
    }
    let is_tls13 = |suite: &SupportedCipherSuite| suite.tls13().is_some();
    Ok(provider()
        .cipher_suites
        .into_iter()
        .filter(|suite| is_tls13(suite) || chosen.contains(&suite.suite()))
        .collect())
}

/// Words that are joined by `+` must all be true of a suite.
fn matches(word: &str, own: &str, kinds: &[&str]) -> bool {
    word == own || word.split('+').all(|part| (ALL.contains(&part) && fits(part, own)) || kinds.contains(&part))
}

/// The two words that are part of a name as well.
fn fits(part: &str, own: &str) -> bool {
    !part.starts_with("ECDHE-") || own.starts_with(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls12(list: &str) -> Result<Vec<CipherSuite>, String> {
        let suites = select(list).map_err(|error| error.to_string())?;
        assert!(suites.iter().any(|suite| suite.tls13().is_some()));
        Ok(suites.iter().filter(|suite| suite.tls13().is_none()).map(SupportedCipherSuite::suite).collect())
    }

    #[test]
    fn openssls_lists() {
        // From Patroni's documentation.
        let list = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256:!SSLv1:!SSLv2:!SSLv3:!TLSv1:!TLSv1.1";
        assert_eq!(tls12(list).unwrap().len(), 2);
        assert_eq!(tls12("HIGH:!aNULL:!MD5").unwrap().len(), 6);
        assert_eq!(tls12("EECDH+AESGCM").unwrap().len(), 4);
        assert_eq!(tls12("ALL:-AES128:!aRSA").unwrap().len(), 2);
        assert_eq!(
            tls12("ECDHE-RSA-CHACHA20-POLY1305").unwrap(),
            [CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256]
        );
        assert!(tls12("RC4-MD5").unwrap_err().contains("selects no suite"));
    }
}
