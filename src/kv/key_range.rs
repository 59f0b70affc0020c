//! etcd's way to name a range of keys by two byte strings.
//!
//! ```text
//!   key, ""       that key alone           key, "\0"     that key and everything after it
//!   key, end      key <= k < end           "\0", "\0"    everything
//! ```

use std::ops::{Bound, RangeBounds};

/// A range of keys as a request gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange<'a> {
    start: &'a [u8],
    end: End<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End<'a> {
    Single,
    Open,
    Before(&'a [u8]),
}

impl<'a> KeyRange<'a> {
    /// From a request's `key` and `range_end`. Every pair means something: an end at or before the key is an empty range.
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        let end = match range_end {
            [] => End::Single,
            [0] => End::Open,
            end => End::Before(end),
        };
        Self { start: key, end }
    }

    /// Whether `key` is inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self.end {
            End::Single => key == self.start,
            End::Open => key >= self.start,
            End::Before(end) => key >= self.start && key < end,
        }
    }

    /// Whether no key at all can be inside.
    pub fn is_empty(&self) -> bool {
        matches!(self.end, End::Before(end) if end <= self.start)
    }

    /// The key, if the range is that key alone.
    pub fn single(&self) -> Option<&'a [u8]> {
        (self.end == End::Single).then_some(self.start)
    }

    /// For `BTreeMap::range`; `None` where that would panic because the range is empty.
    pub(super) fn bounds(&self) -> Option<impl RangeBounds<[u8]> + use<'a>> {
        if self.is_empty() {
            return None;
        }
        let end = match self.end {
            End::Single => Bound::Included(self.start),
            End::Open => Bound::Unbounded,
            End::Before(end) => Bound::Excluded(end),
        };
        Some((Bound::Included(self.start), end))
    }

    /// First key, and the first key not included; `None` for no end. Not for single keys.
    pub(super) fn span(&self) -> (&'a [u8], Option<&'a [u8]>) {
        match self.end {
            End::Before(end) => (self.start, Some(end)),
            End::Open | End::Single => (self.start, None),
        }
    }
}

/// The `range_end` that makes `prefix` a range of all keys beginning with it; one zero byte ("no end")
/// if there is no key after them.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|&byte| byte != 0xff).map_or(0, |last| last + 1);
    let mut end = prefix[..kept].to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end
}

#[cfg(test)]
mod tests {
    use super::{KeyRange, prefix_end};

    #[test]
    fn the_forms_of_a_range() {
        let single = KeyRange::new(b"b", b"");
        assert!(single.contains(b"b") && !single.contains(b"b\0") && !single.contains(b"a"));
        let open = KeyRange::new(b"b", b"\0");
        assert!(open.contains(b"b") && open.contains(b"\xff\xff") && !open.contains(b"a"));
        let whole = KeyRange::new(b"\0", b"\0");
        assert!(whole.contains(b"\0") && whole.contains(b"zz"));
        let some = KeyRange::new(b"b", b"d");
        assert!(some.contains(b"b") && some.contains(b"cz") && !some.contains(b"d"));
        let nothing = KeyRange::new(b"z", b"a");
        assert!(nothing.is_empty() && nothing.bounds().is_none() && !nothing.contains(b"m"));
        assert!(KeyRange::new(b"z", b"z").is_empty());
    }

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(prefix_end(b"foo/"), b"foo0");
        assert_eq!(prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), b"\0");
        assert_eq!(prefix_end(b""), b"\0");
    }
}
