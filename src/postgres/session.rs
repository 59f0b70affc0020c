//! Sessions with a PostgreSQL server: how they are opened, what they may cost, how their failures are told apart.
//!
//! endpoints in order (socket, then TCP) -> session with its own settings -> simple-protocol text rows.
//! The simple protocol on purpose: several statements in one round trip, nothing prepared, every type is text.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};

use super::credentials::Login;
use super::error::{NotAccepting, StatusError};

/// Limit for opening a session.
const CONNECT: Duration = Duration::from_secs(2);

/// One way to reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// Directory of the socket, and the port that is part of its name.
    Socket(PathBuf, u16),
    /// Host and port.
    Tcp(String, u16),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(dir, port) => write!(f, "{}/.s.PGSQL.{port}", dir.display()),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// What a session is for: decides its name and limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purpose {
    /// `application_name`, seen in `pg_stat_activity`.
    pub name: &'static str,
    /// `statement_timeout`.
    pub statement_timeout: Duration,
    /// Whether the login is a superuser's: some of our settings are for superusers alone.
    pub superuser: bool,
}

impl Purpose {
    /// Work on the local server, as superuser.
    pub(super) fn local(statement_timeout: Duration) -> Self {
        Self { name: "howdah", statement_timeout, superuser: true }
    }

    /// A question to another node, as the rewind login.
    pub(super) fn remote(statement_timeout: Duration) -> Self {
        Self { name: "howdah", statement_timeout, superuser: false }
    }
}

/// An open session. Dropping it ends the connection.
pub(super) struct Session {
    client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// Opens a session on the first endpoint that lets us in.
    ///
    /// The error of the first endpoint that had a server behind it is the one that is reported.
    pub(super) async fn open(
        endpoints: &[Endpoint],
        login: &Login,
        database: &str,
        purpose: Purpose,
    ) -> Result<Self, StatusError> {
        let mut first: Option<StatusError> = None;
        for endpoint in endpoints {
            match Self::open_one(endpoint, login, database, purpose).await {
                Ok(session) => return Ok(session),
                Err(error @ (StatusError::NotAccepting { .. } | StatusError::TooManyConnections { .. })) => {
                    return Err(error);
                }
                Err(error) => {
                    let better = matches!(first, None | Some(StatusError::Refused { .. }));
                    if better {
                        first = Some(error);
                    }
                }
            }
        }
        Err(first.unwrap_or_else(|| StatusError::Refused {
            endpoint: "nowhere".to_owned(),
            message: "no address to connect to is known".to_owned(),
        }))
    }

    async fn open_one(
        endpoint: &Endpoint,
        login: &Login,
        database: &str,
        purpose: Purpose,
    ) -> Result<Self, StatusError> {
        let mut config = Config::new();
        match endpoint {
            Endpoint::Socket(dir, port) => config.host_path(dir).port(*port),
            Endpoint::Tcp(host, port) => config.host(host).port(*port),
        };
        config
            .user(&login.username)
            .dbname(database)
            .application_name(purpose.name)
            .connect_timeout(CONNECT)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(5))
            .options(session_options(purpose));
        // Without a password the socket's `peer` line decides.
        if !login.password.expose().is_empty() {
            config.password(login.password.expose());
        }
        let connecting = tokio::time::timeout(CONNECT, config.connect(NoTls)).await;
        let (client, connection) = match connecting {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => return Err(classify_connect(&error, endpoint, &login.username)),
            Err(_) => return Err(StatusError::Timeout { after: CONNECT }),
        };
        // The driver ends with the connection; its error reaches the caller through the client.
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { client, driver })
    }

    /// Whether the connection is known to be gone.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs statements; one list of rows for each that completes.
    pub(super) async fn run(&self, sql: &str, limit: Duration) -> Result<Vec<Vec<TextRow>>, StatusError> {
        let messages = match tokio::time::timeout(limit, self.client.simple_query(sql)).await {
            Ok(Ok(messages)) => messages,
            Ok(Err(error)) => return Err(classify_query(&error)),
            Err(_) => return Err(StatusError::Timeout { after: limit }),
        };
        let mut results = Vec::new();
        let mut rows = Vec::new();
        for message in messages {
            match message {
                SimpleQueryMessage::Row(row) => rows.push(TextRow(row)),
                SimpleQueryMessage::CommandComplete(_) => results.push(std::mem::take(&mut rows)),
                _ => {}
            }
        }
        Ok(results)
    }
}

/// A row of text values.
#[derive(Debug)]
pub(super) struct TextRow(SimpleQueryRow);

impl TextRow {
    /// The value of a column; none when NULL or when there is no such column.
    pub(super) fn text(&self, column: &str) -> Option<&str> {
        self.0.try_get(column).ok().flatten()
    }

    /// The value of a column that is never NULL.
    pub(super) fn required(&self, column: &str) -> Result<&str, StatusError> {
        self.text(column).ok_or_else(|| StatusError::Answer { why: format!("column {column:?} is missing or NULL") })
    }

    /// Parses a column; NULL gives none.
    pub(super) fn parse<T: std::str::FromStr>(&self, column: &str) -> Result<Option<T>, StatusError> {
        let Some(text) = self.text(column) else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|_| StatusError::Answer { why: format!("column {column:?} has the value {text:?}") })
    }

    /// Parses a column that is never NULL.
    pub(super) fn parse_required<T: std::str::FromStr>(&self, column: &str) -> Result<T, StatusError> {
        self.required(column)?;
        self.parse(column)?.ok_or_else(|| StatusError::Answer { why: format!("column {column:?} is NULL") })
    }

    /// All columns by name.
    pub(super) fn to_pairs(&self) -> Vec<(String, Option<String>)> {
        let columns = self.0.columns().iter().enumerate();
        columns.map(|(i, c)| (c.name().to_owned(), self.0.get(i).map(str::to_owned))).collect()
    }

    /// A boolean column; NULL is false.
    pub(super) fn flag(&self, column: &str) -> bool {
        self.text(column) == Some("t")
    }
}

/// Settings of our own sessions: no operator's timeout or search path, no waiting for a synchronous standby.
///
/// `pg_stat_statements.track` is a harmless placeholder where that extension is not loaded, and a fatal error for
/// anyone but a superuser where it is.
fn session_options(purpose: Purpose) -> String {
    let superuser = if purpose.superuser { " -c pg_stat_statements.track=none" } else { "" };
    format!(
        "-c statement_timeout={} -c lock_timeout=1000 -c idle_in_transaction_session_timeout=0 \
         -c search_path=pg_catalog -c synchronous_commit=local -c default_transaction_isolation=read\\ committed \
         -c client_min_messages=warning -c DateStyle=ISO -c TimeZone=UTC{superuser}",
        purpose.statement_timeout.as_millis()
    )
}

fn classify_connect(error: &tokio_postgres::Error, endpoint: &Endpoint, user: &str) -> StatusError {
    let endpoint = endpoint.to_string();
    if let Some(answer) = error.as_db_error() {
        let message = answer.message().to_owned();
        return match answer.code() {
            code if *code == SqlState::CANNOT_CONNECT_NOW => {
                StatusError::NotAccepting { endpoint, state: which_state(&message), message }
            }
            // A server that goes down refuses with this one, too.
            code if *code == SqlState::ADMIN_SHUTDOWN || *code == SqlState::CRASH_SHUTDOWN => {
                StatusError::NotAccepting { endpoint, state: NotAccepting::ShuttingDown, message }
            }
            code if *code == SqlState::TOO_MANY_CONNECTIONS => StatusError::TooManyConnections { endpoint },
            code if *code == SqlState::INVALID_PASSWORD || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                StatusError::Authentication { endpoint, user: user.to_owned(), message }
            }
            code => StatusError::Query { sqlstate: code.code().to_owned(), message },
        };
    }
    let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    let io = error.source().and_then(|s| s.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    match io {
        Some(std::io::ErrorKind::TimedOut) => StatusError::Timeout { after: CONNECT },
        Some(_) => StatusError::Refused { endpoint, message: cause },
        None if cause.contains("password missing") => {
            let message = "the server wants a password and none is known".to_owned();
            StatusError::Authentication { endpoint, user: user.to_owned(), message }
        }
        None => StatusError::ConnectionLost { message: format!("{error}: {cause}") },
    }
}

/// The server's words in English; in another language the state stays unspecified.
///
/// Source: PostgreSQL `postmaster.c`, `backend_startup.c`, `CAC_*`.
fn which_state(message: &str) -> NotAccepting {
    if message.contains("starting up") || message.contains("not yet accepting") {
        NotAccepting::StartingUp
    } else if message.contains("shutting down") {
        NotAccepting::ShuttingDown
    } else if message.contains("recovery mode") || message.contains("not accepting connections") {
        NotAccepting::Recovering
    } else {
        NotAccepting::Unspecified
    }
}

fn classify_query(error: &tokio_postgres::Error) -> StatusError {
    if let Some(answer) = error.as_db_error() {
        let fatal = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN].contains(answer.code());
        if fatal {
            return StatusError::ConnectionLost { message: answer.message().to_owned() };
        }
        return StatusError::Query { sqlstate: answer.code().code().to_owned(), message: answer.message().to_owned() };
    }
    let cause = error.source().map(|s| format!(": {s}")).unwrap_or_default();
    StatusError::ConnectionLost { message: format!("{error}{cause}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_accept_says_why() {
        assert_eq!(which_state("the database system is starting up"), NotAccepting::StartingUp);
        assert_eq!(which_state("the database system is not yet accepting connections"), NotAccepting::StartingUp);
        assert_eq!(which_state("the database system is shutting down"), NotAccepting::ShuttingDown);
        assert_eq!(which_state("the database system is in recovery mode"), NotAccepting::Recovering);
        assert_eq!(which_state("das Datenbanksystem startet"), NotAccepting::Unspecified);
    }

    #[tokio::test]
    async fn nobody_listening_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("free port");
        let port = listener.local_addr().expect("address").port();
        drop(listener);
        let endpoints = [Endpoint::Socket(dir.path().to_owned(), 5432), Endpoint::Tcp("127.0.0.1".to_owned(), port)];
        let purpose = Purpose::remote(CONNECT);
        let result = Session::open(&endpoints, &Login::new("u", ""), "d", purpose).await;
        assert!(matches!(result.err(), Some(StatusError::Refused { .. })));
    }

    #[tokio::test]
    async fn a_silent_server_times_out() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("free port");
        let port = listener.local_addr().expect("address").port();
        let purpose = Purpose::remote(CONNECT);
        let endpoints = [Endpoint::Tcp("127.0.0.1".to_owned(), port)];
        let result = Session::open(&endpoints, &Login::new("u", ""), "d", purpose).await;
        assert!(matches!(result.err(), Some(StatusError::Timeout { .. })));
    }
}
