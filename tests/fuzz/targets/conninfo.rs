//! Connection strings with any host, user, file and option in them: another reader of the same grammar finds what was put in.

#![no_main]

use std::path::Path;

use howdah::postgres::internals::conninfo;
use howdah::postgres::{Login, Upstream};
use libfuzzer_sys::fuzz_target;
use tokio_postgres::config::Host;

fuzz_target!(|input: (&str, u16, &str, &str)| {
    let (host, port, user, application) = input;
    // What no connection string can carry, or what means something else: several hosts, a socket directory, nothing.
    let plain = |text: &str| !text.is_empty() && !text.contains('\0');
    if !plain(host) || host.contains([',', '/', '@']) || port == 0 || !plain(user) || !plain(application) {
        return;
    }
    let upstream = Upstream { name: None, host: host.to_owned(), port, slot: None };
    let login = Login::new(user, "secret");
    let text = conninfo(&upstream, &login, Path::new("/run/pgpass"), application).expect("no option is unknown");
    assert!(!text.contains("secret") || [host, user, application].iter().any(|part| part.contains("secret")));
    if [host, user, application].iter().any(|part| part.contains("passfile") || part.contains("keepalives")) {
        return;
    }
    // Two options that the other reader does not know.
    let known = text.replacen(" passfile=/run/pgpass", "", 1).replacen(" keepalives_count=3", "", 1);
    let read: tokio_postgres::Config = known.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(read.get_hosts(), [Host::Tcp(host.to_owned())], "{text}");
    assert_eq!((read.get_ports(), read.get_user()), (&[port][..], Some(user)), "{text}");
    assert_eq!(read.get_application_name(), Some(application), "{text}");
});
