//! Log lines on standard error: `2026-11-22T20:00:00.123Z  INFO n1: message key=value`, or one JSON object a line.
//!
//! The environment's `HOWDAH_LOG` (for example `howdah::agent=debug`) wins over the configured level. Deliberately
//! absent: files and rotation; the service manager has them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::clock;

/// What to write and how.
#[derive(Debug, Clone)]
pub struct LogSetup {
    /// In every line.
    pub node: String,
    /// `debug`, `info`, `warn` or `error`; applies to howdah's own modules. Libraries log from `warn` on.
    pub level: &'static str,
    /// One JSON object a line instead of text.
    pub json: bool,
    /// Added to every JSON line.
    pub static_fields: BTreeMap<String, String>,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `HOWDAH_LOG` is no filter.
    #[error("set up logging: HOWDAH_LOG is not a filter such as `debug` or `howdah::agent=debug,warn`")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Another subscriber is there already.
    #[error("set up logging: it was set up before")]
    Twice,
}

/// Starts logging to standard error, for the whole process, once.
///
/// # Errors
/// See [`LogError`].
pub fn init(setup: LogSetup) -> Result<(), LogError> {
    let filter = match std::env::var("HOWDAH_LOG") {
        Ok(text) if !text.trim().is_empty() => EnvFilter::try_new(text)?,
        // The consensus engine reports each unanswered heartbeat; `raft` says once that a member is unreachable.
        _ => EnvFilter::try_new(format!("warn,openraft=off,howdah={}", setup.level))?,
    };
    tracing::subscriber::set_global_default(subscriber(setup, filter, std::io::stderr)).map_err(|_| LogError::Twice)
}

fn subscriber<W>(setup: LogSetup, filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).event_format(Line { setup }).finish()
}

/// Formats one event.
struct Line {
    setup: LogSetup,
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, json!(format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, json!(value));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, json!(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, json!(value));
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, json!(value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, json!(value));
    }
    /// The whole chain of causes, as sources are not repeated in the messages themselves.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        self.add(field, json!(text));
    }
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            name => self.others.push((name, value)),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let at = clock::wall().iso().replace("+00:00", "Z");
        let meta = event.metadata();
        if self.setup.json {
            return writeln!(out, "{}", self.json_line(&at, meta, fields));
        }
        let level = match *meta.level() {
            Level::ERROR => "ERROR",
            Level::WARN => " WARN",
            Level::INFO => " INFO",
            Level::DEBUG => "DEBUG",
            Level::TRACE => "TRACE",
        };
        write!(out, "{at} {level} {}: {}", self.setup.node, one_line(&fields.message))?;
        for (name, value) in &fields.others {
            match value {
                Value::String(text) if text.is_empty() || text.contains([' ', '"', '=', '\n']) => {
                    write!(out, " {name}={}", json!(text))?;
                }
                Value::String(text) => write!(out, " {name}={text}")?,
                other => write!(out, " {name}={other}")?,
            }
        }
        writeln!(out)
    }
}

impl Line {
    fn json_line(&self, at: &str, meta: &tracing::Metadata<'_>, fields: Fields) -> Value {
        let mut line = Map::new();
        for (name, value) in &self.setup.static_fields {
            line.insert(name.clone(), json!(value));
        }
        for (name, value) in fields.others {
            line.insert(name.to_owned(), value);
        }
        line.insert("time".into(), json!(at));
        line.insert("level".into(), json!(meta.level().as_str().to_lowercase()));
        line.insert("node".into(), json!(self.setup.node));
        line.insert("target".into(), json!(meta.target()));
        line.insert("message".into(), json!(fields.message));
        Value::Object(line)
    }
}

/// One event is one line, whatever an error text holds.
fn one_line(text: &str) -> String {
    text.replace('\n', " | ")
}

/// Writes a last word when logging itself is not there yet. Nothing can be done if that fails.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic while held").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let static_fields = BTreeMap::from([("site".to_owned(), "a".to_owned())]);
        let setup = LogSetup { node: "n1".into(), level: "info", json, static_fields };
        let subscriber = subscriber(setup, EnvFilter::new("info"), move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(role = "primary", lag_bytes = 3, why = "two words", "role changed");
            tracing::debug!("not shown");
        });
        String::from_utf8(kept.0.lock().expect("no panic while held").clone()).expect("UTF-8")
    }

    #[test]
    fn plain_lines() {
        let line = logged(false);
        let (at, rest) = line.split_at("2026-11-22T20:00:00.123Z".len());
        assert!(at.ends_with('Z') && at.contains('T'), "{at}");
        assert_eq!(rest, "  INFO n1: role changed role=primary lag_bytes=3 why=\"two words\"\n");
    }

    #[test]
    fn json_lines() {
        let line: Value = serde_json::from_str(&logged(true)).expect("JSON");
        assert_eq!(
            (&line["message"], &line["lag_bytes"], &line["site"]),
            (&json!("role changed"), &json!(3), &json!("a"))
        );
        assert_eq!((&line["level"], &line["node"]), (&json!("info"), &json!("n1")));
    }
}
