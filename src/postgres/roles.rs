//! The three roles of a cluster: made once after the first start, made again harmlessly, and looked for later.
//!
//! Passwords travel as SCRAM verifiers, in a session that the server does not log.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Instance;
use super::credentials::{Credentials, Login, scram_verifier};
use super::error::{Error, StatusError};
use super::session::{Purpose, Session};
use super::sql;

/// Limit for all of it.
const LIMIT: Duration = Duration::from_secs(10);

/// Limit for a look at what is there: usually all of it.
const LOOK: Duration = Duration::from_secs(2);

impl Instance {
    /// Creates or alters superuser, replication role and rewind role of the running primary.
    ///
    /// Also the way to give them new passwords; `configure` must follow on every node.
    ///
    /// # Errors
    /// `Sql`. Repeating it is harmless.
    pub async fn bootstrap_roles(&self, credentials: &Credentials) -> Result<(), Error> {
        self.set_credentials(credentials);
        let fail = |source| Error::Sql { operation: "create roles", source };
        let purpose = Purpose::local(LIMIT);
        let session = self.open(purpose).await.map_err(fail)?;
        let existing = existing(&session, credentials, LIMIT).await.map_err(fail)?;
        let script = role_script(credentials, &existing, Existing::Altered);
        session.run(sql::SILENCE, LIMIT).await.map_err(fail)?;
        session.run(&script, LIMIT).await.map_err(fail)?;
        Ok(())
    }

    /// Creates those of the three roles that are not there any more, and leaves the others as they are. Returns the
    /// names of the new ones.
    ///
    /// # Errors
    /// `Sql`. Repeating it is harmless.
    pub async fn restore_roles(&self, credentials: &Credentials) -> Result<Vec<String>, Error> {
        let fail = |source| Error::Sql { operation: "look after roles", source };
        let session = self.open(Purpose::local(LOOK)).await.map_err(fail)?;
        let existing = existing(&session, credentials, LOOK).await.map_err(fail)?;
        let all = credentials.all().into_iter().map(|login| login.username.clone());
        let missing: BTreeSet<String> = all.filter(|name| !existing.contains(name)).collect();
        if !missing.is_empty() {
            let script = role_script(credentials, &existing, Existing::Kept);
            session.run(sql::SILENCE, LOOK).await.map_err(fail)?;
            session.run(&script, LOOK).await.map_err(fail)?;
        }
        Ok(missing.into_iter().collect())
    }
}

/// Those of the roles that are there.
async fn existing(
    session: &Session,
    credentials: &Credentials,
    limit: Duration,
) -> Result<BTreeSet<String>, StatusError> {
    let names: Vec<String> = credentials.all().iter().map(|login| sql::literal(&login.username)).collect();
    let question = format!("SELECT rolname FROM pg_roles WHERE rolname IN ({})", names.join(", "));
    let rows = session.run(&question, limit).await?;
    Ok(rows.iter().flatten().filter_map(|row| row.text("rolname")).map(str::to_owned).collect())
}

/// What happens to a role that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    Altered,
    Kept,
}

fn role_script(credentials: &Credentials, existing: &BTreeSet<String>, then: Existing) -> String {
    let Credentials { superuser, replication, rewind } = credentials;
    let mut script = String::from("SET password_encryption = 'scram-sha-256';\n");
    let mut done: Vec<&str> = Vec::new();
    for (login, attributes) in
        [(superuser, "SUPERUSER REPLICATION"), (replication, "REPLICATION"), (rewind, "NOREPLICATION")]
    {
        // One role may do the work of several; the first line gives it the most.
        if done.contains(&login.username.as_str()) {
            continue;
        }
        done.push(&login.username);
        let verb = match (existing.contains(&login.username), then) {
            (true, Existing::Kept) => continue,
            (true, Existing::Altered) => "ALTER",
            (false, _) => "CREATE",
        };
        let name = sql::identifier(&login.username);
        script.push_str(&format!("{verb} ROLE {name} WITH LOGIN {attributes}{};\n", password_clause(login)));
    }
    let granted = then == Existing::Kept && existing.contains(&rewind.username);
    if rewind.username != superuser.username && !granted {
        for function in sql::REWIND_FUNCTIONS {
            let name = sql::identifier(&rewind.username);
            script.push_str(&format!("GRANT EXECUTE ON FUNCTION {function} TO {name};\n"));
        }
    }
    script
}

fn password_clause(login: &Login) -> String {
    let password = login.password.expose();
    if password.is_empty() {
        return String::new();
    }
    let secret = scram_verifier(password).unwrap_or_else(|| password.clone());
    format!(" PASSWORD {}", sql::literal(&secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn no_password_is_in_the_script() {
        let credentials = Credentials::generate();
        let script = role_script(&credentials, &there(&["postgres"]), Existing::Altered);
        assert!(script.contains("ALTER ROLE \"postgres\" WITH LOGIN SUPERUSER"), "{script}");
        assert!(script.contains("CREATE ROLE \"replicator\" WITH LOGIN REPLICATION"), "{script}");
        for login in credentials.all() {
            assert!(!script.contains(login.password.expose().as_str()));
        }
        assert_eq!(script.matches("GRANT EXECUTE").count(), 4);
    }

    #[test]
    fn one_role_for_everything_is_made_once() {
        let one = Login::new("postgres", "secret");
        let credentials = Credentials { superuser: one.clone(), replication: one.clone(), rewind: one };
        let script = role_script(&credentials, &there(&["postgres"]), Existing::Altered);
        assert_eq!(script.matches("ROLE").count(), 1);
        assert!(!script.contains("GRANT"));
    }

    #[test]
    fn what_is_there_is_left_alone_when_the_rest_is_restored() {
        let credentials = Credentials::generate();
        let script = role_script(&credentials, &there(&["postgres", "rewind_user"]), Existing::Kept);
        assert!(script.contains("CREATE ROLE \"replicator\" WITH LOGIN REPLICATION PASSWORD"), "{script}");
        assert_eq!((script.matches("ROLE").count(), script.matches("GRANT").count()), (1, 0), "{script}");
        let script = role_script(&credentials, &there(&["postgres", "replicator"]), Existing::Kept);
        assert_eq!((script.matches("CREATE ROLE").count(), script.matches("GRANT").count()), (1, 4), "{script}");
    }
}
