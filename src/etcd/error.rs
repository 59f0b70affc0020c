//! Failures as etcd's clients know them: they match on code and text.

use tonic::{Code, Status};

use crate::kv;
use crate::raft::StoreError;

/// A refusal of the state machine.
pub fn rejected(error: &kv::Error) -> Status {
    Status::new(Code::from_i32(error.code() as i32), error.to_string())
}

/// A failure of the store. Everything that may be better on the next try, or on another node, is `Unavailable`:
/// any other code ends a client's watch for good.
pub fn status(error: &StoreError) -> Status {
    match error {
        StoreError::Rejected(error) => rejected(error),
        StoreError::NoLeader => no_leader(),
        StoreError::Timeout { maybe_applied: false } => Status::unavailable("etcdserver: request timed out"),
        StoreError::Timeout { maybe_applied: true } => {
            Status::unavailable("etcdserver: request timed out, possibly due to connection lost")
        }
        StoreError::Shutdown => stopped(),
        StoreError::Refused { why } => Status::failed_precondition(format!("etcdserver: {why}")),
    }
}

/// Nobody leads the store as far as this node knows.
pub fn no_leader() -> Status {
    Status::unavailable("etcdserver: no leader")
}

/// This node stops.
pub fn stopped() -> Status {
    Status::unavailable("etcdserver: server stopped")
}

/// The caller has no right to it.
pub fn permission_denied() -> Status {
    Status::permission_denied("etcdserver: permission denied")
}

/// Part of etcd's API that is not served here.
pub fn not_supported() -> Status {
    Status::unimplemented("etcdserver: not supported")
}
