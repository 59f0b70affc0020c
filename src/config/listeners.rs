//! Rule R7: no two listeners of a node on the same address.
//!
//! By what the file says. Deliberately absent: who else listens on this machine.

use super::ListenAddresses;
use super::address::is_wildcard;
use super::reader::Reader;

/// Notes each listener, given by its key, that would find its port taken by one before it.
pub(super) fn check(reader: &mut Reader<'_>, listeners: &[(&str, Option<&ListenAddresses>)]) {
    let listeners: Vec<(&str, &ListenAddresses)> =
        listeners.iter().filter_map(|(key, listen)| Some((*key, (*listen)?))).collect();
    for (index, (key, listen)) in listeners.iter().enumerate() {
        if let Some((twin, _)) = listeners[..index].iter().find(|(_, other)| overlap(listen, other)) {
            let text = format!("{listen} is where {twin} listens; each needs a port of its own (rule R7)");
            reader.problem(key, text);
        }
    }
}

fn overlap(one: &ListenAddresses, other: &ListenAddresses) -> bool {
    let meet = |a: &String| other.hosts.iter().any(|b| a == b || is_wildcard(a) || is_wildcard(b));
    one.port == other.port && one.hosts.iter().any(meet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_meet_on_one_port_and_one_address() {
        let overlap = |one: &str, other: &str| overlap(&one.parse().expect("valid"), &other.parse().expect("valid"));
        assert!(overlap("127.0.0.1:5000", "10.0.0.1,127.0.0.1:5000") && overlap("*:5000", "127.0.0.1:5000"));
        assert!(!overlap("127.0.0.1:5000", "127.0.0.1:5001") && !overlap("10.0.0.1:5000", "127.0.0.1:5000"));
    }
}
