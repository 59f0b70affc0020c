//! `dsn` and `query`: how to reach a member's PostgreSQL, and SQL on it.
//!
//! member (by name, by role, else the leader) -> host and port -> libpq's own sources of user and password -> rows.
//! Deliberately absent: anything that psql does better.

use std::error::Error;
use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use super::args::{DsnArgs, Format, OneMember, QueryArgs, RoleFilter};
use super::client::Client;
use super::output::{note, print};
use super::render::{Column, Table};
use super::upkeep::in_role;
use super::{Failure, Outcome, exit};
use crate::agent::snapshot::{MemberStatus, Snapshot};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// `howdah dsn`
pub(super) async fn dsn(client: &Client, args: &DsnArgs) -> Outcome {
    let status = client.status(args.cluster.as_deref()).await?;
    let (host, port) = address(&status.snapshot, &args.one)?;
    if args.format == Format::Pretty {
        return print(&format!("host={host} port={port}"));
    }
    let columns = ["host", "port"].map(Column::left).to_vec();
    print(&Table { columns, rows: vec![vec![json!(host), json!(port)]], ..Table::default() }.render(args.format))
}

/// `howdah query`
pub(super) async fn query(client: &Client, args: &QueryArgs) -> Outcome {
    let sql = sql_of(args)?;
    let status = client.status(args.cluster.as_deref()).await?;
    let (host, port) = address(&status.snapshot, &args.one)?;
    let mut config = Config::new();
    let login = login(client, args, &host, port)?;
    config.host(&host).port(port).user(&login.user).dbname(&login.database);
    config.connect_timeout(CONNECT).application_name("howdah query");
    if let Some(password) = &login.password {
        config.password(password);
    }
    let connecting = config.connect(NoTls).await;
    let (session, connection) = connecting.map_err(|error| {
        Failure::new(exit::FAILED, format!("connect to {host}:{port}: {}", refusal(&error, &login)))
    })?;
    let driver = tokio::spawn(connection);
    let pause = args.watch.or(args.watch_2s.then_some(2)).map(|seconds| Duration::from_secs(seconds.into()));
    loop {
        let answer = session.simple_query(&sql).await;
        let answer = answer.map_err(|error| Failure::new(exit::FAILED, cause(&error)))?;
        print(&written(&answer, args))?;
        let Some(pause) = pause else { break };
        sleep(pause).await;
    }
    driver.abort();
    Ok(())
}

/// Where the member that is asked for listens.
fn address(snapshot: &Snapshot, one: &OneMember) -> Outcome<(String, u16)> {
    let nobody = |text: String| Err(Failure::new(exit::REFUSED, text));
    let Some(cluster) = &snapshot.cluster else { return nobody("the cluster's state is not known yet".to_owned()) };
    let role = one.role.unwrap_or(RoleFilter::Leader);
    let leads = matches!(role, RoleFilter::Leader | RoleFilter::Primary | RoleFilter::StandbyLeader);
    if let Some(doubt) = cluster.doubt(&snapshot.name).filter(|_| one.member.is_none() && leads) {
        return Err(Failure::new(exit::NO_QUORUM, doubt));
    }
    let fits = |member: &&MemberStatus| match &one.member {
        Some(name) => member.name.as_str() == name,
        None => in_role(cluster, member, Some(role)),
    };
    let found = cluster.members.iter().filter(fits).min_by_key(|member| &member.name);
    match found.map(|member| (&member.host, member.port)) {
        Some((Some(host), Some(port))) => Ok((host.clone(), port)),
        _ => nobody("Can not find a suitable member; see `howdah list`".to_owned()),
    }
}

fn sql_of(args: &QueryArgs) -> Outcome<String> {
    match (&args.command, &args.file) {
        (Some(sql), _) => Ok(sql.clone()),
        (None, Some(file)) if file.as_os_str() == "-" => {
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text).context("read standard input")?;
            Ok(text)
        }
        (None, Some(file)) => Ok(std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?),
        (None, None) => Err(Failure::new(exit::USAGE, "give the SQL by -c, or a file of it by -f")),
    }
}

/// Who connects, and how it proves that.
pub(super) struct Login {
    /// The user.
    pub(super) user: String,
    /// The database.
    pub(super) database: String,
    /// The password.
    pub(super) password: Option<String>,
}

/// The same for another command.
pub(super) fn login_of(
    client: &Client,
    username: Option<&String>,
    dbname: Option<&String>,
    host: &str,
    port: u16,
) -> Login {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let superuser = client.superuser().filter(|role| username.is_none_or(|name| *name == role.username));
    let user = username.cloned().or_else(|| superuser.map(|role| role.username.clone()));
    let user = user.or_else(|| variable("PGUSER")).unwrap_or_else(|| "postgres".to_owned());
    let database = dbname.cloned().or_else(|| variable("PGDATABASE")).unwrap_or_else(|| "postgres".to_owned());
    let password = superuser
        .and_then(|role| role.password.as_ref().map(|password| password.expose().clone()))
        .or_else(|| variable("PGPASSWORD"))
        .or_else(|| from_password_file(host, port, &database, &user));
    Login { user, database, password }
}

/// User, database and password as libpq finds them; a node's file comes before the environment.
fn login(client: &Client, args: &QueryArgs, host: &str, port: u16) -> Outcome<Login> {
    let mut login = login_of(client, args.username.as_ref(), args.dbname.as_ref(), host, port);
    if args.password {
        login.password = Some(asked_password(&login.user)?);
    }
    Ok(login)
}

fn asked_password(user: &str) -> Outcome<String> {
    note(&format!("Password of {user} (it is shown as you type):"));
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line).context("read the password")?;
    if read == 0 {
        return Err(anyhow!("there was no password").into());
    }
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// Source: PostgreSQL documentation, libpq, "The Password File".
fn from_password_file(host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    let named = std::env::var_os("PGPASSFILE").map(PathBuf::from);
    let path = named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pgpass")))?;
    let text = std::fs::read_to_string(path).ok()?;
    let port = port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = unescaped(line);
        let [h, p, d, u, password] = fields.as_slice() else { return None };
        let matches = [(h, host), (p, &port), (d, database), (u, user)];
        matches.iter().all(|(field, value)| *field == "*" || field == value).then(|| password.clone())
    })
}

/// The five fields of a line; `\:` and `\\` stand for themselves.
fn unescaped(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (letter, fields.len()) {
            ('\\', _) => fields.last_mut().into_iter().for_each(|field| field.extend(letters.next())),
            (':', 1..5) => fields.push(String::new()),
            _ => fields.last_mut().into_iter().for_each(|field| field.push(letter)),
        }
    }
    fields
}

fn written(answer: &[SimpleQueryMessage], args: &QueryArgs) -> String {
    let mut names: Vec<&str> = Vec::new();
    let mut rows: Vec<Vec<Value>> = Vec::new();
    for message in answer {
        match message {
            // Of several statements the last one that gives rows counts.
            SimpleQueryMessage::RowDescription(columns) => {
                names = columns.iter().map(tokio_postgres::SimpleColumn::name).collect();
                rows.clear();
            }
            SimpleQueryMessage::Row(row) => rows.push((0..row.len()).map(|index| json!(row.get(index))).collect()),
            _ => (),
        }
    }
    let table = Table { columns: names.into_iter().map(Column::left).collect(), rows, ..Table::default() };
    match args.format {
        Format::Tsv => table.delimited(&args.delimiter),
        other => table.render(other),
    }
}

/// What the server says, with its code.
fn cause(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), error.source()) {
        (Some(server), _) => format!("ERROR, SQLSTATE {}: {}", server.code().code(), server.message()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

/// Why there is no connection, and what helps.
fn refusal(error: &tokio_postgres::Error, login: &Login) -> String {
    // The server asks for one, and the library has none to give.
    let asked = error.source().is_some_and(|source| source.to_string() == "password missing");
    match (asked, login.password.is_none()) {
        (true, true) => format!(
            "the server asks for a password of {}, and none is known; give it by PGPASSWORD, the password file or \
             --password, or name a node's file by -c",
            login.user
        ),
        _ => cause(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_password_file() {
        assert_eq!(unescaped(r"h:5432:*:post\:gres:a\\b:c"), ["h", "5432", "*", "post:gres", r"a\b:c"]);
        assert_eq!(unescaped("too:short"), ["too", "short"]);
    }
}
