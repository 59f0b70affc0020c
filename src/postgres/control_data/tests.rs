//! Texts as each version prints them; only what differs between versions is spelled out.

use super::*;

/// Builds the text of one version: (pg_control version, catalog version, extra lines).
fn text(control: &str, catalog: &str, extra: &str) -> String {
    format!(
        "pg_control version number:            {control}
Catalog version number:               {catalog}
Database system identifier:           7711096617197452235
Database cluster state:               in archive recovery
pg_control last modified:             Sun Nov 22 20:33:12 2026
Latest checkpoint location:           1/A0000028
Latest checkpoint's REDO location:    1/A0000010
Latest checkpoint's REDO WAL file:    0000000300000001000000A0
Latest checkpoint's TimeLineID:       3
Latest checkpoint's PrevTimeLineID:   2
Latest checkpoint's full_page_writes: on
Latest checkpoint's NextXID:          0:724
Latest checkpoint's oldestCommitTsXid:0
Time of latest checkpoint:            Sun Nov 22 20:33:12 2026
Fake LSN counter for unlogged rels:   0/3E8
Minimum recovery ending location:     1/B0000000
Min recovery ending loc's timeline:   4
Backup start location:                0/0
Backup end location:                  0/0
End-of-backup record required:        no
wal_level setting:                    logical
wal_log_hints setting:                on
max_connections setting:              200
max_worker_processes setting:         8
max_wal_senders setting:              11
max_prepared_xacts setting:           5
max_locks_per_xact setting:           64
track_commit_timestamp setting:       off
Maximum data alignment:               8
Database block size:                  8192
WAL block size:                       8192
Bytes per WAL segment:                16777216
Data page checksum version:           0
{extra}Mock authentication nonce:            00
"
    )
}

#[test]
fn every_supported_version_is_understood() {
    let versions = [
        ("1300", "202007201", "Date/time type storage:               64-bit integers\n"),
        ("1300", "202107181", ""),
        ("1300", "202209061", ""),
        ("1300", "202307071", ""),
        ("1700", "202406281", ""),
        ("1800", "202506291", "Default char data signedness:         signed\n"),
    ];
    for (control, catalog, extra) in versions {
        let data = ControlData::parse(&text(control, catalog, extra)).expect("understood");
        assert_eq!(data.system_id, SystemId(7_711_096_617_197_452_235));
        assert_eq!(data.state, ControlState::InArchiveRecovery);
        assert_eq!((data.timeline, data.previous_timeline), (TimelineId(3), TimelineId(2)));
        assert_eq!(data.newest_timeline(), TimelineId(4));
        assert_eq!((data.checkpoint, data.redo), (Lsn(0x1_A000_0028), Lsn(0x1_A000_0010)));
        assert_eq!(data.proven_position(), Lsn(0x1_B000_0000));
        assert!(data.can_be_rewound() && data.wal_log_hints && !data.checksums && !data.backup_in_progress);
        assert_eq!(data.floors.max_connections, 200);
        assert_eq!(data.floors.max_prepared_transactions, 5);
        assert_eq!(data.wal_segment_size, 16 << 20);
    }
}

#[test]
fn states_have_meaning() {
    for (words, clean, primary) in [
        ("shut down", true, true),
        ("shut down in recovery", true, false),
        ("in production", false, true),
        ("in archive recovery", false, false),
        ("unrecognized status code", false, false),
    ] {
        let replaced = text("1300", "202209061", "").replace("in archive recovery", words);
        let state = ControlData::parse(&replaced).expect("understood").state;
        assert_eq!((state.is_clean(), state.was_primary()), (clean, primary), "{words}");
    }
}

#[test]
fn a_primary_has_no_minimum_recovery_end() {
    let primary = text("1300", "202209061", "").replace("1/B0000000", "0/0").replace("timeline:   4", "timeline:   0");
    let data = ControlData::parse(&primary).expect("understood");
    assert_eq!((data.minimum_recovery_end, data.minimum_recovery_timeline), (None, None));
    assert_eq!(data.proven_position(), data.checkpoint);
}

#[test]
fn a_base_backup_that_is_not_replayed_shows() {
    let restored = text("1300", "202209061", "")
        .replace("Backup start location:                0/0", "Backup start location: 1/A0");
    assert!(ControlData::parse(&restored).expect("understood").backup_in_progress);
}

#[test]
fn a_damaged_file_is_not_believed() {
    let warning = "WARNING: Calculated CRC checksum does not match value stored in file.\n";
    let damaged = warning.to_owned() + &text("1300", "202209061", "");
    let error = ControlData::parse(&damaged).expect_err("damaged").to_string();
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn missing_and_malformed_fields_are_named() {
    let error = ControlData::parse("").expect_err("nothing there").to_string();
    assert!(error.contains("Minimum recovery ending location"), "{error}");
    let broken = text("1300", "202209061", "").replace("7711096617197452235", "many");
    let error = ControlData::parse(&broken).expect_err("no number").to_string();
    assert!(error.contains("Database system identifier") && error.contains("many"), "{error}");
}
