//! The three roles of a cluster: made once after the first start, and made again harmlessly.
//!
//! Passwords travel as SCRAM verifiers, in a session that the server does not log.

use std::time::Duration;

use super::Instance;
use super::credentials::{Credentials, Login, scram_verifier};
use super::error::Error;
use super::session::Purpose;
use super::sql;

/// Limit for all of it.
const LIMIT: Duration = Duration::from_secs(10);

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
        let names: Vec<String> = credentials.all().iter().map(|login| sql::literal(&login.username)).collect();
        let question = format!("SELECT rolname FROM pg_roles WHERE rolname IN ({})", names.join(", "));
        let existing = session.run(&question, LIMIT).await.map_err(fail)?;
        let existing: Vec<&str> = existing.iter().flatten().filter_map(|row| row.text("rolname")).collect();
        let script = role_script(credentials, &existing);
        session.run(sql::SILENCE, LIMIT).await.map_err(fail)?;
        session.run(&script, LIMIT).await.map_err(fail)?;
        Ok(())
    }
}

fn role_script(credentials: &Credentials, existing: &[&str]) -> String {
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
        let verb = if existing.contains(&login.username.as_str()) { "ALTER" } else { "CREATE" };
        let name = sql::identifier(&login.username);
        script.push_str(&format!("{verb} ROLE {name} WITH LOGIN {attributes}{};\n", password_clause(login)));
    }
    if rewind.username != superuser.username {
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

    #[test]
    fn no_password_is_in_the_script() {
        let credentials = Credentials::generate();
        let script = role_script(&credentials, &["postgres"]);
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
        let script = role_script(&credentials, &["postgres"]);
        assert_eq!(script.matches("ROLE").count(), 1);
        assert!(!script.contains("GRANT"));
    }
}
