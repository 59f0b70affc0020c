//! The text of `pg_hba.conf` and `pg_ident.conf`.
//!
//! The operator's list is used as it is given; without one there is a default that lets in: howdah and its user
//! over the socket, the members' replication and rewind logins from the members' hosts, everybody else by password.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::conf::HEADER;
use super::credentials::Credentials;

/// Name of the map from operating-system users to the superuser.
const MAP: &str = "howdah";

/// Renders `pg_hba.conf`.
///
/// A member that is known by name and not by address opens its lines to all addresses: PostgreSQL would otherwise
/// need a matching reverse lookup, and the login is protected by SCRAM and a long password either way.
pub(super) fn render_hba(
    list: Option<&[String]>,
    credentials: Option<&Credentials>,
    member_hosts: &BTreeSet<String>,
) -> String {
    if let Some(list) = list {
        return render_list(list);
    }
    let mut text = String::from(HEADER);
    text.push_str("# TYPE  DATABASE  USER  ADDRESS  METHOD\n");
    if let Some(credentials) = credentials {
        let superuser = quote(&credentials.superuser.username);
        let replication = quote(&credentials.replication.username);
        let rewind = quote(&credentials.rewind.username);
        text.push_str(&format!("local  all  {superuser}  peer map={MAP}\n"));
        let loopback = ["127.0.0.1/32".to_owned(), "::1/128".to_owned()];
        for address in addresses(member_hosts).iter().chain(&loopback) {
            text.push_str(&format!("host  replication  {replication}  {address}  scram-sha-256\n"));
            text.push_str(&format!("host  all  {rewind}  {address}  scram-sha-256\n"));
        }
        // From anywhere else these two are refused; the superuser, when it also does their work, is not.
        let elsewhere: BTreeSet<&String> = [&replication, &rewind].into_iter().filter(|n| **n != superuser).collect();
        if !elsewhere.is_empty() {
            let names = elsewhere.into_iter().map(String::as_str).collect::<Vec<_>>().join(",");
            text.push_str(&format!("host  all  {names}  all  reject\n"));
        }
    }
    text.push_str("local  all  all  scram-sha-256\n");
    text.push_str("host  all  all  all  scram-sha-256\n");
    text
}

/// Renders `pg_ident.conf`: the operator's lines, and ours for those who may be the superuser over the socket.
pub(super) fn render_ident(list: Option<&[String]>, credentials: Option<&Credentials>, os_users: &[&str]) -> String {
    let mut text = list.map_or_else(|| String::from(HEADER), render_list);
    if let Some(credentials) = credentials {
        for user in os_users.iter().collect::<BTreeSet<_>>() {
            text.push_str(&format!("{MAP}  {}  {}\n", quote(user), quote(&credentials.superuser.username)));
        }
    }
    text
}

fn render_list(list: &[String]) -> String {
    let mut text = String::from(HEADER);
    for line in list {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Address column entries for the members' hosts.
fn addresses(hosts: &BTreeSet<String>) -> BTreeSet<String> {
    let one = |host: &String| match host.parse::<IpAddr>() {
        Ok(address @ IpAddr::V4(_)) => format!("{address}/32"),
        Ok(address @ IpAddr::V6(_)) => format!("{address}/128"),
        Err(_) => "all".to_owned(),
    };
    if hosts.is_empty() {
        return BTreeSet::from(["all".to_owned()]);
    }
    let found: BTreeSet<String> = hosts.iter().map(one).collect();
    if found.contains("all") { BTreeSet::from(["all".to_owned()]) } else { found }
}

/// A name in double quotes loses any special meaning (`all`, `replication`, `+group`).
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::credentials::Login;

    fn credentials() -> Credentials {
        Credentials {
            superuser: Login::new("postgres", "a"),
            replication: Login::new("replicator", "b"),
            rewind: Login::new("rewind_user", "c"),
        }
    }

    #[test]
    fn the_default_lets_members_in() {
        let hosts = BTreeSet::from(["10.0.0.2".to_owned(), "fd00::1".to_owned()]);
        let text = render_hba(None, Some(&credentials()), &hosts);
        let expected = format!(
            r#"{HEADER}# TYPE  DATABASE  USER  ADDRESS  METHOD
local  all  "postgres"  peer map=howdah
host  replication  "replicator"  10.0.0.2/32  scram-sha-256
host  all  "rewind_user"  10.0.0.2/32  scram-sha-256
host  replication  "replicator"  fd00::1/128  scram-sha-256
host  all  "rewind_user"  fd00::1/128  scram-sha-256
host  replication  "replicator"  127.0.0.1/32  scram-sha-256
host  all  "rewind_user"  127.0.0.1/32  scram-sha-256
host  replication  "replicator"  ::1/128  scram-sha-256
host  all  "rewind_user"  ::1/128  scram-sha-256
host  all  "replicator","rewind_user"  all  reject
local  all  all  scram-sha-256
host  all  all  all  scram-sha-256
"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_member_known_by_name_may_come_from_anywhere() {
        let hosts = BTreeSet::from(["10.0.0.2".to_owned(), "pg2.example".to_owned()]);
        let text = render_hba(None, Some(&credentials()), &hosts);
        assert!(text.contains("host  replication  \"replicator\"  all  scram-sha-256\n"), "{text}");
        assert!(!text.contains("10.0.0.2/32"), "{text}");
    }

    #[test]
    fn the_operators_list_is_used_as_it_is() {
        let list = vec!["local all all trust".to_owned(), "hostssl all all all cert  ".to_owned()];
        let text = render_hba(Some(&list), Some(&credentials()), &BTreeSet::new());
        assert_eq!(text, format!("{HEADER}local all all trust\nhostssl all all all cert\n"));
    }

    #[test]
    fn the_map_names_us_and_the_servers_user_once() {
        let text = render_ident(Some(&["m a b".to_owned()]), Some(&credentials()), &["root", "postgres", "root"]);
        assert_eq!(
            text,
            format!("{HEADER}m a b\nhowdah  \"postgres\"  \"postgres\"\nhowdah  \"root\"  \"postgres\"\n")
        );
    }
}
