//! Every SQL text that is sent to a server, with the versions it is for; and SQL quoting.
//!
//! All texts work on 13 to 18 as they are: columns that came later are read through `to_jsonb`, which has no opinion
//! about columns that do not exist.

/// The state of the local server, in one round trip: four result sets.
///
/// 1. Scalars. The timeline of a primary comes from the name of its current WAL file: the control file learns the
///    new timeline only with the first checkpoint after a promotion.
///    A standby asks for a WAL stream only when it has read all WAL that it had (archive and `pg_wal`), and waits
///    for more (`RecoveryRetrieveRetryInterval`) only then: before, its positions are no measure of what it has.
///    Source: PostgreSQL, `xlogrecovery.c`, `WaitForWALToBecomeAvailable`.
/// 2. The WAL receiver (`flushed_lsn` exists since 13; before that it was `received_lsn`).
/// 3. WAL senders with their slots.
/// 4. Replication slots (`failover`, `synced`: 17; `invalidation_reason`: 17).
pub(super) const STATUS: &str = r"
SELECT pg_is_in_recovery() AS in_recovery,
       current_setting('server_version_num') AS version,
       (SELECT system_identifier FROM pg_control_system()) AS system_id,
       to_char(pg_postmaster_start_time() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')||'+00:00' AS started,
       CASE WHEN pg_is_in_recovery() THEN NULL
            ELSE ('x'||substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END AS primary_timeline,
       CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn() END AS write_lsn,
       CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_flush_lsn() END AS flush_lsn,
       CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_insert_lsn() END AS insert_lsn,
       pg_last_wal_receive_lsn() AS receive_lsn,
       pg_last_wal_replay_lsn() AS replay_lsn,
       CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS replay_paused,
       CASE WHEN NOT pg_is_in_recovery() OR pg_last_wal_receive_lsn() IS NOT NULL THEN false
            ELSE NOT EXISTS (SELECT FROM pg_stat_activity
                              WHERE backend_type = 'startup'
                                AND wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval',
                                                   'RecoveryWalAll')) END AS replaying,
       to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')||'+00:00' AS replay_time,
       (SELECT timeline_id FROM pg_control_checkpoint()) AS checkpoint_timeline,
       (SELECT redo_lsn FROM pg_control_checkpoint()) AS checkpoint_redo,
       (SELECT min_recovery_end_timeline FROM pg_control_recovery()) AS recovery_timeline,
       current_setting('synchronous_standby_names') AS synchronous_standby_names,
       current_setting('primary_conninfo') AS primary_conninfo,
       current_setting('primary_slot_name') AS primary_slot_name,
       current_setting('restore_command') AS restore_command,
       (extract(epoch FROM pg_conf_load_time()) * 1000000)::bigint AS loaded;
SELECT status, sender_host, sender_port, slot_name, conninfo, received_tli, written_lsn, flushed_lsn, latest_end_lsn
  FROM pg_stat_wal_receiver;
SELECT r.pid, r.usename, r.application_name, host(r.client_addr) AS client_addr, r.state, r.sync_state,
       r.sync_priority, r.sent_lsn, r.write_lsn, r.flush_lsn, r.replay_lsn, s.slot_name
  FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
 ORDER BY r.application_name, r.pid LIMIT 1000;
SELECT slot_name, slot_type, database, plugin, temporary, active, restart_lsn, confirmed_flush_lsn,
       xmin IS NOT NULL AS has_xmin, catalog_xmin IS NOT NULL AS has_catalog_xmin, wal_status,
       to_jsonb(s)->>'failover' AS failover, to_jsonb(s)->>'synced' AS synced,
       to_jsonb(s)->>'invalidation_reason' AS invalidation_reason
  FROM pg_replication_slots s ORDER BY slot_name LIMIT 1000;
";

/// Proof that it is our server that answers.
pub(super) const DATA_DIRECTORY: &str = "SELECT current_setting('data_directory') AS data_directory";

/// Settings that wait for a restart, with the value in the files, and the controlled ones: those stand on the command
/// line, which hides a difference from PostgreSQL's own `pending_restart`. Then those that can take back what a commit
/// promises; our own session has a `synchronous_commit` of its own, so that one is looked up in the files.
///
/// Costs more than all the rest, so it is asked only when the server has read its files since the last time.
pub(super) const SETTINGS: &str = r"
SELECT s.name, s.setting, coalesce(s.unit, '') AS unit, s.vartype, s.pending_restart, current_setting(s.name) AS shown,
       CASE WHEN s.pending_restart OR s.name = 'synchronous_commit'
            THEN (SELECT f.setting FROM pg_file_settings f WHERE f.name = s.name ORDER BY f.seqno DESC LIMIT 1)
       END AS in_file
  FROM pg_settings s
 WHERE s.pending_restart
    OR s.name IN ('listen_addresses', 'port', 'cluster_name', 'unix_socket_directories', 'hot_standby',
                  'max_connections', 'max_locks_per_transaction', 'max_prepared_transactions',
                  'max_replication_slots', 'max_wal_senders', 'max_worker_processes', 'track_commit_timestamp',
                  'wal_level', 'wal_log_hints', 'synchronous_commit', 'fsync', 'full_page_writes')
 ORDER BY s.name;
";

/// Physical and logical slots, for upkeep.
pub(super) const SLOTS: &str = "SELECT slot_name, slot_type, database, plugin, active, temporary, restart_lsn, wal_status FROM pg_replication_slots";

/// What another node is and has; allowed to every role (13 to 18).
pub(super) const REMOTE: &str = r"
SELECT pg_is_in_recovery() AS in_recovery,
       (SELECT system_identifier FROM pg_control_system()) AS system_id,
       current_setting('server_version_num') AS version,
       CASE WHEN pg_is_in_recovery() THEN NULL
            ELSE ('x'||substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END AS primary_timeline,
       greatest((SELECT timeline_id FROM pg_control_checkpoint()),
                (SELECT min_recovery_end_timeline FROM pg_control_recovery())) AS control_timeline,
       (SELECT timeline_id FROM pg_control_checkpoint()) AS checkpoint_timeline,
       CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_flush_lsn() END AS lsn;
";

/// Where tablespaces lie; allowed to every role.
pub(super) const TABLESPACES: &str = "SELECT pg_tablespace_location(oid) AS location FROM pg_tablespace \
     WHERE pg_tablespace_location(oid) <> ''";

/// Functions that a role needs to be pg_rewind's source user.
///
/// Source: PostgreSQL documentation, pg_rewind, notes (11 and newer).
pub(super) const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];

/// Keeps what follows in the session out of the server's log. Superuser only.
pub(super) const SILENCE: &str = "SET log_statement = 'none'; SET log_min_duration_statement = -1; \
     SET log_min_error_statement = 'panic'; SET log_min_messages = 'panic'; SET log_duration = off; \
     SET log_parser_stats = off; SET log_statement_stats = off";

/// Reads a file of the server's data directory as hexadecimal text; no row when it is not there.
pub(super) fn read_file(relative_path: &str) -> String {
    format!("SELECT encode(pg_read_binary_file({}, 0, 1048576, true), 'hex') AS content", literal(relative_path))
}

/// Whether a physical slot is there and free.
pub(super) fn slot_is_free(name: &str) -> String {
    format!(
        "SELECT 1 FROM pg_replication_slots WHERE slot_name = {} AND slot_type = 'physical' AND NOT active",
        literal(name)
    )
}

/// Creates a physical slot that keeps WAL from now on.
pub(super) fn create_slot(name: &str) -> String {
    format!("SELECT pg_create_physical_replication_slot({}, true)", literal(name))
}

/// Creates a logical slot; `failover`: standbys get copies of it from PostgreSQL itself (17 and newer).
pub(super) fn create_logical_slot(name: &str, plugin: &str, failover: bool) -> String {
    let more = if failover { ", false, false, true" } else { "" };
    format!("SELECT pg_create_logical_replication_slot({}, {}{more})", literal(name), literal(plugin))
}

/// Drops a slot.
pub(super) fn drop_slot(name: &str) -> String {
    format!("SELECT pg_drop_replication_slot({})", literal(name))
}

/// Moves a slot forward.
pub(super) fn advance_slot(name: &str, to: crate::types::Lsn) -> String {
    format!("SELECT pg_replication_slot_advance({}, {})", literal(name), literal(&to.to_string()))
}

/// Ends the WAL senders of a member.
pub(super) fn terminate_senders(application_name: &str) -> String {
    format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = {}",
        literal(application_name)
    )
}

/// Quotes a string constant, whatever `standard_conforming_strings` is.
pub(super) fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// Quotes an identifier.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_leaves_no_way_out() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(create_slot("n1"), "SELECT pg_create_physical_replication_slot('n1', true)");
    }
}
