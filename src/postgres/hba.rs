//! The text of `pg_hba.conf` and `pg_ident.conf`, and what PostgreSQL would not take of an operator's lines.
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

/// A file that says who may connect as whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessFile {
    /// `pg_hba.conf`: a server does not start with a wrong line.
    Hba,
    /// `pg_ident.conf`: a wrong line takes all maps away, and with them howdah's own way in.
    Ident,
}

/// What is wrong with the lines of an access file, for a server of version `major`; none = of any version. Empty where
/// there is a doubt: a line that is refused without need is worse than one that PostgreSQL refuses.
///
/// Source: PostgreSQL documentation 13 to 18, "The pg_hba.conf File" and "User Name Maps"; `hba.c`, `parse_hba_line`.
pub fn wrong_lines(file: AccessFile, lines: &[String], major: Option<u32>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut rules = 0;
    for (number, line) in joined(lines) {
        let fields = fields(&line);
        if fields.is_empty() {
            continue;
        }
        rules += 1;
        let checked = if is_include(&fields, major) {
            Ok(())
        } else {
            match file {
                AccessFile::Hba => check_rule(&fields, major),
                AccessFile::Ident => check_map(&fields),
            }
        };
        wrong.extend(checked.err().map(|why| format!("line {number}, {:?}: {why}", line.trim())));
    }
    if rules == 0 && file == AccessFile::Hba {
        wrong.push("there is no rule in it, and PostgreSQL does not start without one".to_owned());
    }
    wrong
}

/// Lines as PostgreSQL reads them, with the number of the first: a backslash at the end joins the next one.
fn joined(lines: &[String]) -> Vec<(usize, String)> {
    let mut all: Vec<(usize, String)> = Vec::new();
    let mut continued = false;
    let parts = lines.iter().flat_map(|line| line.trim_end().split('\n')).enumerate();
    for (index, part) in parts {
        let part = part.trim_end_matches('\r');
        let (text, continues) = part.strip_suffix('\\').map_or((part, false), |text| (text, true));
        match all.last_mut().filter(|_| continued) {
            Some((_, line)) => line.push_str(text),
            None => all.push((index + 1, text.to_owned())),
        }
        continued = continues;
    }
    all
}

/// One value of a field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Token {
    text: String,
    /// Words in quotes have no special meaning.
    quoted: bool,
}

type Field = Vec<Token>;

/// The fields of a line, each with its values: blanks part fields, commas the values of one.
fn fields(line: &str) -> Vec<Field> {
    let mut all: Vec<Field> = Vec::new();
    let mut letters = line.chars().peekable();
    let mut same_field = false;
    loop {
        while letters.next_if(|letter| is_blank(*letter) || *letter == ',').is_some() {}
        let (mut token, mut in_quote, mut was_quote, mut seen, mut comma) =
            (Token::default(), false, false, false, false);
        while let Some(letter) = letters.next_if(|letter| in_quote || !is_blank(*letter)) {
            match letter {
                '#' if !in_quote => {
                    letters.by_ref().for_each(drop);
                    break;
                }
                ',' if !in_quote => {
                    comma = true;
                    break;
                }
                _ => (),
            }
            seen = true;
            if letter != '"' || was_quote {
                token.text.push(letter);
            }
            was_quote = in_quote && letter == '"' && !was_quote;
            if letter == '"' {
                in_quote = !in_quote;
                token.quoted |= token.text.is_empty();
            }
        }
        if !seen {
            return all;
        }
        match all.last_mut().filter(|_| same_field) {
            Some(field) => field.push(token),
            None => all.push(vec![token]),
        }
        same_field = comma;
    }
}

fn is_blank(letter: char) -> bool {
    matches!(letter, ' ' | '\t' | '\r')
}

/// Whether the line names another file: that is not looked into.
fn is_include(fields: &[Field], major: Option<u32>) -> bool {
    let word = matches!(text(fields, 0), Some("include" | "include_if_exists" | "include_dir"));
    word && fields.len() == 2 && major.is_none_or(|major| 16 <= major)
}

fn text(fields: &[Field], index: usize) -> Option<&str> {
    fields.get(index)?.first().map(|token| token.text.as_str())
}

/// The only value of a field.
fn single<'a>(fields: &'a [Field], index: usize, what: &str) -> Result<&'a Token, String> {
    match fields.get(index).map(Vec::as_slice) {
        Some([token]) => Ok(token),
        Some(_) => Err(format!("{what} has more than one value")),
        None => Err(format!("it ends before {what}")),
    }
}

const TYPES: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];

fn check_rule(fields: &[Field], major: Option<u32>) -> Result<(), String> {
    let kind = single(fields, 0, "the connection type")?.text.as_str();
    if !TYPES.contains(&kind) {
        return Err(format!("{kind:?} is no connection type; there are {}", TYPES.join(", ")));
    }
    for (index, what) in [(1, "the database"), (2, "the user")] {
        fields.get(index).ok_or_else(|| format!("it ends before {what}"))?;
    }
    let method_at = match kind {
        "local" => 3,
        _ => match check_address(fields)? {
            Some(method_at) => method_at,
            None => return Ok(()),
        },
    };
    let method = single(fields, method_at, "the authentication method")?.text.as_str();
    check_method(kind, method, major)?;
    let options = fields.iter().skip(method_at + 1).flatten();
    check_options(kind, method, options)
}

/// Where the method stands after the address; none if it is one of the forms that only the system's resolver knows.
fn check_address(fields: &[Field]) -> Result<Option<usize>, String> {
    let token = single(fields, 3, "the address")?;
    let address = token.text.as_str();
    if !token.quoted && matches!(address, "all" | "samehost" | "samenet") {
        return Ok(Some(4));
    }
    let (host, bits) = address.split_once('/').map_or((address, None), |(host, bits)| (host, Some(bits)));
    let odd = host.contains('%') || (!host.is_empty() && host.chars().all(|l| l.is_ascii_digit() || l == '.'));
    match (host.parse::<IpAddr>(), bits) {
        (Ok(ip), Some(bits)) => {
            let most = if ip.is_ipv4() { 32 } else { 128 };
            match bits.parse::<u32>() {
                Ok(bits) if bits <= most => Ok(Some(4)),
                _ => Err(format!("{address:?}: the mask has 0 to {most} bits")),
            }
        }
        (Ok(ip), None) => {
            let mask = &single(fields, 4, "the mask of the address, which /32 or /128 would be, too")?.text;
            match mask.parse::<IpAddr>() {
                Ok(mask) if mask.is_ipv4() == ip.is_ipv4() => Ok(Some(5)),
                Ok(_) => Err(format!("address {address} and mask {mask} are of different families")),
                Err(_) if mask.chars().all(|l| l.is_ascii_digit() || l == '.') => Ok(None),
                Err(_) => Err(format!(
                    "after the address {address} comes its mask, which {mask:?} is not; or write {address}/{}",
                    if ip.is_ipv4() { 32 } else { 128 }
                )),
            }
        }
        // 10.1 is an address to the resolver, and fe80::1%eth0 is one where there is an eth0.
        (Err(_), _) if odd => Ok(None),
        (Err(_), Some(_)) => Err(format!("{address:?}: only an IP address has a mask, not a host name")),
        (Err(_), None) => Ok(Some(4)),
    }
}

const METHODS: [&str; 15] = [
    "trust",
    "reject",
    "scram-sha-256",
    "md5",
    "password",
    "gss",
    "sspi",
    "ident",
    "peer",
    "ldap",
    "radius",
    "cert",
    "pam",
    "bsd",
    "oauth",
];

fn check_method(kind: &str, method: &str, major: Option<u32>) -> Result<(), String> {
    let known = METHODS.contains(&method) && (method != "oauth" || major.is_none_or(|major| 18 <= major));
    let why = match (kind, method) {
        _ if !known => return Err(format!("{method:?} is no authentication method")),
        ("local", "gss") => "gss is for connections over the network",
        ("local", "peer") | ("hostssl", "cert") => return Ok(()),
        (_, "peer") => "peer is for local connections",
        (_, "cert") => "cert is for hostssl lines",
        (_, "sspi") => "sspi is there on Windows only",
        _ => return Ok(()),
    };
    Err(why.to_owned())
}

/// Options, with the methods that they are for; none for those of any method.
const OPTIONS: [(&str, &[&str]); 29] = [
    ("map", &["ident", "peer", "gss", "sspi", "cert", "oauth"]),
    ("clientcert", &[]),
    ("clientname", &[]),
    ("pamservice", &["pam"]),
    ("pam_use_hostname", &["pam"]),
    ("ldapurl", &["ldap"]),
    ("ldaptls", &["ldap"]),
    ("ldapscheme", &["ldap"]),
    ("ldapserver", &["ldap"]),
    ("ldapport", &["ldap"]),
    ("ldapbinddn", &["ldap"]),
    ("ldapbindpasswd", &["ldap"]),
    ("ldapsearchattribute", &["ldap"]),
    ("ldapsearchfilter", &["ldap"]),
    ("ldapbasedn", &["ldap"]),
    ("ldapprefix", &["ldap"]),
    ("ldapsuffix", &["ldap"]),
    ("krb_realm", &["gss", "sspi"]),
    ("include_realm", &["gss", "sspi"]),
    ("compat_realm", &["sspi"]),
    ("upn_username", &["sspi"]),
    ("radiusservers", &["radius"]),
    ("radiusports", &["radius"]),
    ("radiussecrets", &["radius"]),
    ("radiusidentifiers", &["radius"]),
    ("issuer", &["oauth"]),
    ("scope", &["oauth"]),
    ("validator", &["oauth"]),
    ("delegate_ident_mapping", &["oauth"]),
];

fn check_options<'a>(kind: &str, method: &str, options: impl Iterator<Item = &'a Token>) -> Result<(), String> {
    for option in options {
        let Some((name, _)) = option.text.split_once('=') else {
            return Err(format!("{:?} is no option: these are written as name=value", option.text));
        };
        let Some((_, methods)) = OPTIONS.iter().find(|(known, _)| *known == name) else {
            return Err(format!("there is no option {name:?}"));
        };
        if !methods.is_empty() && !methods.contains(&method) {
            return Err(format!("the option {name} is for the methods {}, not for {method}", methods.join(", ")));
        }
        if name.starts_with("client") && kind != "hostssl" {
            return Err(format!("the option {name} is for hostssl lines"));
        }
    }
    Ok(())
}

fn check_map(fields: &[Field]) -> Result<(), String> {
    for (index, what) in [(0, "the map's name"), (1, "the system user"), (2, "the database user")] {
        single(fields, index, what)?;
    }
    Ok(())
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

    fn wrong(file: AccessFile, lines: &[&str], major: Option<u32>) -> Vec<String> {
        wrong_lines(file, &lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(), major)
    }

    /// The same table is shown to a real server in tests/postgres.
    #[test]
    fn wrong_lines_are_found_and_no_others() {
        for line in include_str!("../../tests/postgres/hba_lines.txt").lines() {
            let (good, line) = line.split_at(2);
            let found = wrong(AccessFile::Hba, &["local all all trust", line], Some(18));
            assert_eq!(found.is_empty(), good == "+ ", "{line}: {found:?}");
            assert!(found.iter().all(|why| why.starts_with("line 2, ")), "{found:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_the_line() {
        assert_eq!(
            wrong(AccessFile::Hba, &["# mine", "nonsense line"], None),
            [
                "line 2, \"nonsense line\": \"nonsense\" is no connection type; there are local, host, hostssl, hostnossl, hostgssenc, hostnogssenc"
            ]
        );
        assert_eq!(wrong(AccessFile::Hba, &["host all all \\", "  all trust", "local all"], None).len(), 1, "joined");
        assert_eq!(
            wrong(AccessFile::Hba, &["local all all trust\nlocal all"], None),
            ["line 2, \"local all\": it ends before the user"]
        );
        for empty in [&[][..], &["", "# nothing"]] {
            assert_eq!(
                wrong(AccessFile::Hba, empty, None),
                ["there is no rule in it, and PostgreSQL does not start without one"]
            );
            assert!(wrong(AccessFile::Ident, empty, None).is_empty());
        }
    }

    #[test]
    fn some_words_came_with_a_version() {
        let lines = ["include_dir access", "host all all all oauth issuer=x scope=y"];
        assert_eq!(wrong(AccessFile::Hba, &lines, Some(18)).len(), 0);
        assert_eq!(wrong(AccessFile::Hba, &lines, Some(16)).len(), 1);
        assert_eq!(wrong(AccessFile::Hba, &lines, Some(15)).len(), 2);
        assert_eq!(wrong(AccessFile::Hba, &lines, None).len(), 0, "a witness does not know");
    }

    #[test]
    fn maps_have_three_fields() {
        let lines = ["m a b", r"m /^(.*)@x$ \1", "include more", "m a", "m a,b c"];
        let found = wrong(AccessFile::Ident, &lines, Some(16));
        assert_eq!(
            found,
            [
                "line 4, \"m a\": it ends before the database user",
                "line 5, \"m a,b c\": the system user has more than one value"
            ]
        );
    }
}
