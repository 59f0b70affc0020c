//! Users and roles: what they may do, and that root cannot be locked out.

use super::auth::*;
use super::command::{Command, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use super::error::Error;
use super::state::State;
use crate::kv::command::{Compare, CompareResult, CompareTarget, RangeRequest};
use crate::kv::{Response, prefix_end};
use crate::types::LeaseId;
use proptest::prelude::*;

fn text(text: &str) -> String {
    text.to_owned()
}

fn change(state: &mut State, change: AuthChange) -> Result<(), Error> {
    let before = state.auth.clone();
    let result = state.apply(&Command::Auth(change)).response.map(drop);
    assert!(result.is_ok() || state.auth == before, "a refusal changes nothing");
    result
}

fn grant(kind: PermissionKind, role: &str, key: &str, range_end: &str) -> AuthChange {
    let permission = Permission { kind, key: key.into(), range_end: range_end.into() };
    AuthChange::RoleGrantPermission { role: text(role), permission }
}

/// root, and `u` with role `r`: reads and writes [a, c), reads [c, e) and the key `k`, writes `w` alone.
fn store() -> State {
    let mut state = State::new();
    for (name, role) in [(ROOT, ROOT), ("u", "r")] {
        let hash = Some(text("hash"));
        change(&mut state, AuthChange::UserAdd { name: text(name), password: hash }).unwrap();
        change(&mut state, AuthChange::RoleAdd { name: text(role) }).unwrap();
        change(&mut state, AuthChange::UserGrantRole { user: text(name), role: text(role) }).unwrap();
    }
    for permission in [
        grant(PermissionKind::ReadWrite, "r", "a", "c"),
        grant(PermissionKind::Read, "r", "c", "e"),
        grant(PermissionKind::Read, "r", "k", ""),
        grant(PermissionKind::Write, "r", "w", ""),
    ] {
        change(&mut state, permission).unwrap();
    }
    change(&mut state, AuthChange::Enable).unwrap();
    state
}

fn user_of<'a>(state: &'a State, token: &str) -> Option<&'a str> {
    state.auth.token(token).map(|(user, _)| user)
}

fn put(key: &str) -> PutRequest {
    let flags = false;
    let (value, lease) = (Vec::new(), LeaseId(0));
    PutRequest { key: key.into(), value, lease, prev_kv: flags, ignore_value: flags, ignore_lease: flags }
}

fn delete(key: &str, range_end: &str, prev_kv: bool) -> Command {
    Command::DeleteRange(DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv })
}

fn txn(compare: &str, success: Vec<RequestOp>, failure: Vec<RequestOp>) -> Command {
    let compare = Compare {
        key: compare.into(),
        range_end: Vec::new(),
        result: CompareResult::Equal,
        target: CompareTarget::Version(0),
    };
    Command::Txn(TxnRequest { compare: vec![compare], success, failure })
}

#[test]
fn a_user_may_do_what_its_roles_may() {
    let mut state = store();
    let (may, denied) = (Ok(()), Err(Error::PermissionDenied));
    for (key, range_end, expected) in [
        ("a", "", &may),
        ("a", "e", &may),
        ("b", "d", &may),
        ("k", "", &may),
        ("a", "f", &denied),
        ("a", "\0", &denied),
        ("\0", "\0", &denied),
        ("k", "l", &denied),
        ("w", "", &denied),
        // Holds no key.
        ("z", "a", &may),
    ] {
        assert_eq!(&state.auth.permits_read("u", key.as_bytes(), range_end.as_bytes()), expected, "{key} {range_end}");
    }
    let inner = |ops: Vec<RequestOp>| RequestOp::Txn(TxnRequest { success: ops, ..TxnRequest::default() });
    let range = |key: &str| RequestOp::Range(RangeRequest { key: key.into(), ..RangeRequest::default() });
    for (command, expected) in [
        (Command::Put(put("a")), &may),
        (Command::Put(put("c")), &denied),
        (Command::Put(put("w")), &may),
        (Command::Put(PutRequest { prev_kv: true, ..put("w") }), &denied),
        (delete("a", "c", true), &may),
        (delete("a", "d", false), &denied),
        (txn("c", vec![RequestOp::Put(put("b"))], vec![range("d")]), &may),
        (txn("z", vec![], vec![]), &denied),
        (txn("a", vec![], vec![RequestOp::Put(put("z"))]), &denied),
        (txn("a", vec![inner(vec![range("z")])], vec![]), &denied),
        (Command::LeaseGrant { id: LeaseId(9), ttl_ms: 5000 }, &may),
        (Command::Compact { revision: 1 }, &denied),
        (Command::Auth(AuthChange::Disable), &denied),
        (Command::LeasesExpire { ids: Vec::new() }, &denied),
    ] {
        assert_eq!(&state.permits("u", &command), expected, "{command:?}");
        let anonymous = if *expected == may { Error::UserEmpty } else { state.permits("", &command).unwrap_err() };
        assert_eq!(state.permits("", &command), Err(anonymous));
        let applied = state.apply(&Command::As { user: text("u"), command: Box::new(command.clone()) });
        assert_eq!(applied.response.map(drop).err(), expected.clone().err(), "{command:?}");
    }
    assert_eq!(state.permits(ROOT, &delete("\0", "\0", true)), may);
    assert_eq!(state.permits("gone", &Command::Put(put("a"))), denied);
}

#[test]
fn a_lease_is_its_keys() {
    let mut state = store();
    state.apply(&Command::LeaseGrant { id: LeaseId(5), ttl_ms: 5000 }).response.unwrap();
    let hung = |key| PutRequest { lease: LeaseId(5), ..put(key) };
    assert_eq!(state.permits("u", &Command::Put(hung("a"))), Ok(()));
    state.apply(&Command::Put(hung("z"))).response.unwrap();
    assert_eq!(state.permits("u", &Command::Put(hung("a"))), Err(Error::PermissionDenied));
    assert_eq!(state.permits("u", &Command::LeaseRevoke { id: LeaseId(5) }), Err(Error::PermissionDenied));
    assert_eq!(state.permits(ROOT, &Command::LeaseRevoke { id: LeaseId(5) }), Ok(()));
}

#[test]
fn a_permission_that_is_taken_back_is_gone_for_what_is_on_its_way() {
    let mut state = store();
    let on_its_way = Command::As { user: text("u"), command: Box::new(Command::Put(put("a"))) };
    assert!(matches!(state.apply(&on_its_way).response, Ok(Response::Put(_))));
    let revoke = AuthChange::RoleRevokePermission { role: text("r"), key: "a".into(), range_end: "c".into() };
    change(&mut state, revoke.clone()).unwrap();
    assert_eq!(state.apply(&on_its_way).response, Err(Error::PermissionDenied));
    assert_eq!(change(&mut state, revoke), Err(Error::PermissionNotGranted));
    // Nobody speaks for somebody who speaks for somebody.
    let twice = Command::As { user: text(ROOT), command: Box::new(on_its_way) };
    assert_eq!(state.apply(&twice).response, Err(Error::PermissionDenied));
    let by_token = Command::ByToken { token: 0, command: Box::new(twice) };
    assert_eq!(state.apply(&by_token).response, Err(Error::PermissionDenied));
}

/// A member that lags behind took the token, which was void when the command was applied.
#[test]
fn a_token_that_is_void_does_nothing_any_more() {
    let mut state = store();
    let login = |state: &mut State, token: &str| {
        let issue = AuthChange::TokenIssue { user: text("u"), token: text(token), revision: state.auth.revision() };
        change(state, issue).unwrap();
        let number = state.auth.token(token).unwrap().1;
        Command::ByToken { token: number, command: Box::new(Command::Put(put("a"))) }
    };
    let by = |state: &mut State, command: &Command| state.apply(command).response.map(drop);
    let voids = [
        vec![AuthChange::UserChangePassword { name: text("u"), password: text("other") }],
        vec![AuthChange::UserDelete { name: text("u") }],
        // The same name, but not the same user.
        vec![
            AuthChange::UserDelete { name: text("u") },
            AuthChange::UserAdd { name: text("u"), password: Some(text("hash")) },
            AuthChange::UserGrantRole { user: text("u"), role: text("r") },
        ],
        vec![AuthChange::Disable, AuthChange::Enable],
    ];
    for void in voids {
        let mut state = store();
        let (first, second) = (login(&mut state, "t1"), login(&mut state, "t2"));
        assert_eq!((by(&mut state, &first), by(&mut state, &second)), (Ok(()), Ok(())));
        for change in void.clone() {
            self::change(&mut state, change).unwrap();
        }
        assert_eq!(by(&mut state, &first), Err(Error::InvalidAuthToken), "{void:?}");
        assert_eq!(by(&mut state, &second), Err(Error::InvalidAuthToken), "{void:?}");
        assert!(state.auth.is_enabled());
    }
    // A permission is asked for as ever.
    let command = login(&mut state, "t");
    let others =
        Command::ByToken { token: state.auth.token("t").unwrap().1, command: Box::new(delete("z", "", false)) };
    assert_eq!(by(&mut state, &others), Err(Error::PermissionDenied));
    change(&mut state, AuthChange::Disable).unwrap();
    assert_eq!((by(&mut state, &command), by(&mut state, &others)), (Ok(()), Ok(())), "nobody is asked");
}

#[test]
fn root_cannot_lock_itself_out() {
    let mut state = State::new();
    let add = |name: &str| AuthChange::UserAdd { name: text(name), password: None };
    let give = |role: &str| AuthChange::UserGrantRole { user: text(ROOT), role: text(role) };
    assert_eq!(change(&mut state, AuthChange::Enable), Err(Error::RootUserNotExist));
    assert_eq!(change(&mut state, add("")), Err(Error::UserEmpty));
    change(&mut state, add(ROOT)).unwrap();
    assert_eq!(change(&mut state, add(ROOT)), Err(Error::UserAlreadyExists));
    assert_eq!(change(&mut state, AuthChange::Enable), Err(Error::RootRoleNotExist));
    assert_eq!(change(&mut state, give("none")), Err(Error::RoleNotFound));
    change(&mut state, give(ROOT)).unwrap();
    let revision = state.auth.revision();
    change(&mut state, AuthChange::Enable).unwrap();
    assert_eq!(state.auth.revision(), revision, "turning it on is no new revision");
    let revoke = AuthChange::UserRevokeRole { user: text(ROOT), role: text(ROOT) };
    assert_eq!(change(&mut state, revoke.clone()), Err(Error::InvalidAuthManagement));
    let delete = AuthChange::UserDelete { name: text(ROOT) };
    assert_eq!(change(&mut state, delete.clone()), Err(Error::InvalidAuthManagement));
    assert_eq!(change(&mut state, AuthChange::RoleDelete { name: text(ROOT) }), Err(Error::InvalidAuthManagement));
    change(&mut state, AuthChange::Disable).unwrap();
    change(&mut state, revoke.clone()).unwrap();
    assert_eq!(change(&mut state, revoke), Err(Error::RoleNotGranted));
    change(&mut state, delete.clone()).unwrap();
    assert_eq!(change(&mut state, delete), Err(Error::UserNotFound));
    let role = |key: &str, end: &str| grant(PermissionKind::Read, "r", key, end);
    assert_eq!(change(&mut state, role("a", "")), Err(Error::RoleNotFound));
    change(&mut state, AuthChange::RoleAdd { name: text("r") }).unwrap();
    assert_eq!(change(&mut state, AuthChange::RoleAdd { name: text("r") }), Err(Error::RoleAlreadyExists));
    assert_eq!(change(&mut state, AuthChange::RoleAdd { name: text("") }), Err(Error::RoleEmpty));
    assert_eq!(change(&mut state, role("b", "a")), Err(Error::InvalidAuthManagement));
    assert_eq!(change(&mut state, role("", "a")), Err(Error::InvalidAuthManagement));
}

#[test]
fn tokens_are_given_for_the_password_that_is_valid_now() {
    let mut state = store();
    let issue = |user: &str, token: String, revision| AuthChange::TokenIssue { user: text(user), token, revision };
    let revision = state.auth.revision();
    change(&mut state, issue("u", text("t"), revision)).unwrap();
    assert_eq!(user_of(&state, "t"), Some("u"));
    let password = AuthChange::UserChangePassword { name: text("u"), password: text("other") };
    change(&mut state, password).unwrap();
    assert_eq!(user_of(&state, "t"), None, "the old password has got it");
    assert_eq!(change(&mut state, issue("u", text("t"), revision)), Err(Error::AuthOldRevision));
    let revision = state.auth.revision();
    assert_eq!(change(&mut state, issue("nobody", text("t"), revision)), Err(Error::AuthFailed));
    for number in 0..=MAX_TOKENS {
        change(&mut state, issue("u", format!("t{number}"), revision)).unwrap();
    }
    assert_eq!((user_of(&state, "t0"), user_of(&state, "t1")), (None, Some("u")), "the oldest made room");
    change(&mut state, AuthChange::UserDelete { name: text("u") }).unwrap();
    assert_eq!(state.auth.tokens().count(), 0);
    change(&mut state, AuthChange::Disable).unwrap();
    let revision = state.auth.revision();
    assert_eq!(change(&mut state, issue(ROOT, text("t"), revision)), Err(Error::AuthNotEnabled));
    assert_eq!(state.permits("", &delete("\0", "\0", true)), Ok(()));
}

proptest! {
    /// A range is covered exactly if each of its keys is in some granted range.
    #[test]
    fn permissions_together_cover_what_one_of_them_covers_each(
        granted in prop::collection::vec((0_u8..12, 0_u8..14), 0..5),
        (from, until) in (0_u8..12, 0_u8..14),
    ) {
        // 13: no end; an end at or before the start: that key alone.
        let ends = |from: u8, until: u8| match until {
            13 => vec![0],
            until if until <= from => Vec::new(),
            until => vec![until + 1],
        };
        let range = |(from, until): (u8, u8)| (vec![from + 1], ends(from, until));
        let stretches = granted.iter().map(|&pair| range(pair)).map(|(key, end)| stretch(&key, &end)).collect();
        let (key, end) = range((from, until));
        let within = |key: &[u8], (from, end): &(Vec<u8>, Vec<u8>)| crate::kv::KeyRange::new(from, end).contains(key);
        // Keys at and right after each border, and far behind all of them.
        let probes = (0..16_u8).flat_map(|byte| [vec![byte], vec![byte, 0], vec![byte, 7]]).chain([vec![255; 3]]);
        let all: Vec<_> = granted.iter().map(|&pair| range(pair)).collect();
        let expected = probes
            .filter(|probe| within(probe, &(key.clone(), end.clone())))
            .all(|probe| all.iter().any(|granted| within(&probe, granted)));
        prop_assert_eq!(cover(stretches, stretch(&key, &end)), expected);
    }
}

#[test]
fn a_prefix_is_a_range() {
    let end = prefix_end(b"app/");
    assert!(cover(vec![stretch(b"app/", &end)], stretch(b"app/x", &prefix_end(b"app/x"))));
    assert!(!cover(vec![stretch(b"app/", &end)], stretch(b"app", &prefix_end(b"app"))));
}
