//! An authority with its certificates, as files; and programs that are run with them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// Signs certificates into a directory.
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one; `NAME.crt` is its own certificate.
    pub fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.join(format!("{name}.crt")), certificate.pem()).unwrap();
        Self { directory: directory.to_owned(), issuer: Issuer::new(params, key) }
    }

    /// Writes `NAME.crt` and `NAME.key`, good for these hosts and for clients; returns the certificate's serial number.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> String {
        let mut params =
            CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let serial: [u8; 8] = rand::random::<[u8; 8]>().map(|byte| byte & 0x7f | 1);
        params.serial_number = Some(serial.to_vec().into());
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.directory.join(format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        serial.iter().map(|byte| format!("{byte:02X}")).collect()
    }
}

/// What a program left.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Ran {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// curl, with words as on a command line; a status behind the answer.
pub fn curl(args: &str) -> Ran {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "60", "-w", "\n%{http_code}"]).args(args.split(' '));
    run(&mut command)
}

/// The built `howdah`, without what the environment says about clusters.
pub fn howdah(args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_howdah"));
    for variable in std::env::vars_os().map(|(name, _)| name) {
        if ["HOWDAH_", "PATRONI"].iter().any(|ours| variable.to_string_lossy().starts_with(ours)) {
            command.env_remove(variable);
        }
    }
    run(command.args(args))
}

/// The serial number of the certificate that a port shows, to a client with one of its own.
pub fn serial(address: &str, certificate: &Path) -> String {
    let key = certificate.with_extension("key");
    let script = format!(
        "openssl s_client -connect {address} -cert {} -key {} </dev/null 2>/dev/null | openssl x509 -noout -serial",
        certificate.display(),
        key.display()
    );
    run(Command::new("sh").args(["-c", &script])).out.trim().trim_start_matches("serial=").to_owned()
}
