//! Sessions, byte by byte.

use super::*;

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut all = vec![kind];
    all.extend(u32::try_from(body.len() + 4).expect("short").to_be_bytes());
    all.extend(body);
    all
}

/// A session that has started and is idle.
fn idle() -> Follower {
    let mut follower = Follower::new();
    follower.from_client(&message(b'p', b"secret\0"));
    follower.from_server(&message(b'R', &[0, 0, 0, 0]));
    follower.from_server(&message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]));
    follower.from_server(&message(b'Z', b"I"));
    follower
}

#[test]
fn a_session_is_at_a_boundary_between_its_queries() {
    let mut follower = Follower::new();
    assert!(!follower.at_boundary(), "still starting");
    follower = idle();
    assert!(follower.at_boundary());
    assert_eq!(follower.take_key(), Some(vec![0, 0, 0, 7, 1, 2, 3, 4]));
    assert_eq!(follower.take_key(), None);
    follower.from_client(&message(b'Q', b"select 1\0"));
    assert!(!follower.at_boundary());
    follower.from_server(&message(b'D', b"row"));
    assert!(!follower.at_boundary());
    follower.from_server(&message(b'Z', b"I"));
    assert!(follower.at_boundary());
    follower.from_server(&message(b'A', b"a notification")[..7]);
    assert!(!follower.at_boundary(), "a message is half sent");
}

#[test]
fn a_transaction_is_no_boundary() {
    let mut follower = idle();
    for (status, boundary) in [(b"T", false), (b"E", false), (b"I", true)] {
        follower.from_client(&message(b'Q', b"x\0"));
        follower.from_server(&message(b'Z', status));
        assert_eq!(follower.at_boundary(), boundary);
    }
}

#[test]
fn what_a_client_sent_ahead_is_not_forgotten() {
    let mut follower = idle();
    follower.from_client(&message(b'Q', b"one\0"));
    follower.from_client(&message(b'Q', b"two\0"));
    follower.from_server(&message(b'Z', b"I"));
    assert!(!follower.at_boundary(), "the second query is on its way");
    follower.from_server(&message(b'Z', b"I"));
    assert!(follower.at_boundary());
    follower.from_client(&message(b'S', b""));
    follower.from_client(&message(b'P', b"parse"));
    follower.from_server(&message(b'Z', b"I"));
    assert!(!follower.at_boundary(), "a statement has been parsed, nobody asked for its end yet");
    follower.from_client(&message(b'S', b""));
    follower.from_server(&message(b'Z', b"I"));
    assert!(follower.at_boundary());
}

#[test]
fn a_copy_ends_with_its_query() {
    let mut follower = idle();
    follower.from_client(&message(b'Q', b"copy t from stdin\0"));
    follower.from_server(&message(b'G', &[0, 0, 0]));
    follower.from_client(&message(b'd', b"1\n"));
    follower.from_client(&message(b'c', b""));
    assert!(!follower.at_boundary());
    follower.from_server(&message(b'Z', b"I"));
    assert!(follower.at_boundary());
}

#[test]
fn messages_may_be_cut_anywhere() {
    let query = message(b'Q', b"select 1\0");
    let mut answer = message(b'D', &[7; 300]);
    answer.extend(message(b'C', b"SELECT 1\0"));
    answer.extend(message(b'Z', b"I"));
    for size in 1..40 {
        let mut follower = idle();
        for (index, piece) in query.chunks(size).enumerate() {
            follower.from_client(piece);
            assert!(!follower.at_boundary(), "{size} {index}");
        }
        let pieces = answer.chunks(size).count();
        for (index, piece) in answer.chunks(size).enumerate() {
            follower.from_server(piece);
            assert_eq!(follower.at_boundary(), index + 1 == pieces, "{size} {index}");
        }
    }
}

#[test]
fn what_is_not_understood_is_never_at_a_boundary() {
    let mut follower = idle();
    follower.from_server(b"Z\0\0\0\x03");
    assert!(!follower.at_boundary());
    follower.from_server(&message(b'Z', b"I"));
    assert!(!follower.at_boundary());
    let mut follower = idle();
    follower.from_client(&[b'Q', 0xff, 0xff, 0xff, 0xff]);
    follower.from_server(&message(b'Z', b"I"));
    assert!(!follower.at_boundary());
}

#[test]
fn a_long_key_is_kept_whole() {
    let mut follower = Follower::new();
    let body: Vec<u8> = (0..=255).chain(0..4).collect();
    follower.from_server(&message(b'K', &body));
    assert_eq!(follower.take_key(), Some(body));
}
