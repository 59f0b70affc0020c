//! The history of one key: the live pair, and the older changes that are still readable.
//!
//! A worked example. Numbers are store revisions, `x` is a tombstone:
//!
//! ```text
//!   put a=1 (2)   put a=2 (4)   delete a (5)   put a=3 (7)   put a=4 (9)
//!
//!   past: 2 put v1 | 4 put v2 | 5 x | 7 put v1      live: 9 put v2, created at 7
//!         '- first life --------'     '- second life ------------------'
//!
//!   read at 3 -> "1"    at 4 -> "2"    at 5, 6 -> nothing    at 8 -> "3"    at 9 -> "4"
//!
//!   compact 4:  4 put v2 | 5 x | 7 put v1   live 9     the newest put at or before 4 stays readable
//!   compact 5:  5 x | 7 put v1              live 9     a tombstone *at* 5 stays: a watch may start there
//!   compact 6:  7 put v1                    live 9     a tombstone before it is forgotten
//!   compact 9:                              live 9
//! ```
//!
//! The rule behind it: compaction at C forgets every change before C, except the newest one at or
//! before C if that is a put. What is left depends on the changes and on C alone, not on earlier
//! compactions, so members that compacted at different times still hash alike.
//!
//! Each value is stored once: a put moves the live value into `past` without copying it.

use super::command::KeyValue;
use super::revision::Revision;
use crate::types::LeaseId;

/// What a put left, without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub value: Box<[u8]>,
    pub create_revision: i64,
    pub version: i64,
    pub lease: LeaseId,
}

/// One change that is not the live one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Past {
    at: Revision,
    /// `None` for a tombstone.
    put: Option<Version>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Live {
    sub: u32,
    pair: KeyValue,
}

/// All that is known of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeyHistory {
    /// Ascending. Ends in a tombstone exactly if there is no live pair.
    past: Vec<Past>,
    live: Option<Live>,
}

/// A pair as it was at some revision, borrowed from wherever it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub lease: LeaseId,
}

/// One change, borrowed. `put` is `None` for a tombstone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change<'a> {
    pub at: Revision,
    pub put: Option<Pair<'a>>,
}

impl Pair<'_> {
    pub fn to_key_value(self) -> KeyValue {
        KeyValue { value: self.value.to_vec(), ..self.without_value() }
    }

    pub fn without_value(self) -> KeyValue {
        KeyValue {
            key: self.key.to_vec(),
            value: Vec::new(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

impl<'a> From<&'a KeyValue> for Pair<'a> {
    fn from(pair: &'a KeyValue) -> Self {
        Pair {
            key: &pair.key,
            value: &pair.value,
            create_revision: pair.create_revision,
            mod_revision: pair.mod_revision,
            version: pair.version,
            lease: pair.lease,
        }
    }
}

impl Past {
    fn change<'a>(&'a self, key: &'a [u8]) -> Change<'a> {
        let put = self.put.as_ref().map(|version| Pair {
            key,
            value: &version.value,
            create_revision: version.create_revision,
            mod_revision: self.at.main,
            version: version.version,
            lease: version.lease,
        });
        Change { at: self.at, put }
    }
}

impl Live {
    fn at(&self) -> Revision {
        Revision { main: self.pair.mod_revision, sub: self.sub }
    }

    fn change(&self) -> Change<'_> {
        Change { at: self.at(), put: Some(Pair::from(&self.pair)) }
    }
}

impl KeyHistory {
    /// The live pair.
    pub fn live(&self) -> Option<&KeyValue> {
        self.live.as_ref().map(|live| &live.pair)
    }

    /// Make `pair` the live one. `pair.mod_revision` and `sub` are later than all that is here.
    pub fn put(&mut self, sub: u32, pair: KeyValue) {
        self.retire_live();
        self.live = Some(Live { sub, pair });
    }

    /// Leave a tombstone.
    pub fn delete(&mut self, at: Revision) {
        self.retire_live();
        self.past.push(Past { at, put: None });
    }

    fn retire_live(&mut self) {
        if let Some(live) = self.live.take() {
            let at = live.at();
            let KeyValue { value, create_revision, version, lease, .. } = live.pair;
            let put = Some(Version { value: value.into_boxed_slice(), create_revision, version, lease });
            self.past.push(Past { at, put });
        }
    }

    /// The pair as of the end of revision `main`.
    pub fn as_of<'a>(&'a self, key: &'a [u8], main: i64) -> Option<Pair<'a>> {
        if let Some(live) = &self.live
            && live.pair.mod_revision <= main
        {
            return Some(Pair::from(&live.pair));
        }
        let later = self.past.partition_point(|past| past.at.main <= main);
        self.past[..later].last()?.change(key).put
    }

    /// The change made exactly at `at`.
    pub fn change_at<'a>(&'a self, key: &'a [u8], at: Revision) -> Option<Change<'a>> {
        match &self.live {
            Some(live) if live.at() == at => Some(live.change()),
            _ => {
                let found = self.past.binary_search_by_key(&at, |past| past.at).ok()?;
                Some(self.past[found].change(key))
            }
        }
    }

    /// All changes, oldest first.
    pub fn changes<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = Change<'a>> {
        self.past.iter().map(move |past| past.change(key)).chain(self.live.iter().map(Live::change))
    }

    /// Number of changes; zero means that the key can be forgotten.
    pub fn len(&self) -> usize {
        self.past.len() + usize::from(self.live.is_some())
    }

    /// Forget what cannot be read or watched from revision `compact` on, and tell each forgotten
    /// change's value length to `forgotten`.
    pub fn compact(&mut self, compact: i64, mut forgotten: impl FnMut(usize)) {
        let before = self.past.partition_point(|past| past.at.main < compact);
        let next = self.past.get(before).map(|past| past.at.main);
        let next = next.or(self.live.as_ref().map(|live| live.pair.mod_revision));
        // The last change before `compact` is what a read at `compact` sees, unless something
        // changed at or before `compact` after it; a tombstone is seen as absence either way.
        let last_is_needed =
            before > 0 && self.past[before - 1].put.is_some() && next.is_some_and(|main| main > compact);
        let drop_count = if last_is_needed { before - 1 } else { before };
        for past in self.past.drain(..drop_count) {
            forgotten(past.put.map_or(0, |version| version.value.len()));
        }
        // Only a key that really lost much gives memory back: a hot key would otherwise reallocate each time.
        if self.past.capacity() > 4 * self.past.len() + 4 {
            self.past.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyHistory, KeyValue, Revision};

    /// The worked example of the module's documentation.
    fn example() -> KeyHistory {
        let put = |history: &mut KeyHistory, value: &str, create_revision, mod_revision, version| {
            let pair = KeyValue {
                key: b"a".to_vec(),
                value: value.into(),
                create_revision,
                mod_revision,
                version,
                ..KeyValue::default()
            };
            history.put(0, pair);
        };
        let mut history = KeyHistory::default();
        put(&mut history, "1", 2, 2, 1);
        put(&mut history, "2", 2, 4, 2);
        history.delete(Revision { main: 5, sub: 0 });
        put(&mut history, "3", 7, 7, 1);
        put(&mut history, "4", 7, 9, 2);
        history
    }

    fn text(history: &KeyHistory) -> String {
        let one = |change: super::Change<'_>| match change.put {
            Some(pair) => format!("{}={}", change.at.main, String::from_utf8_lossy(pair.value)),
            None => format!("{}x", change.at.main),
        };
        history.changes(b"a").map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn reads_as_of_each_revision() {
        let history = example();
        let read = |main| history.as_of(b"a", main).map(|pair| String::from_utf8_lossy(pair.value).into_owned());
        let expected =
            [None, None, Some("1"), Some("1"), Some("2"), None, None, Some("3"), Some("3"), Some("4"), Some("4")];
        for (main, value) in expected.into_iter().enumerate() {
            assert_eq!(read(main as i64).as_deref(), value, "revision {main}");
        }
    }

    #[test]
    fn compaction_keeps_what_can_still_be_seen() {
        let expected = [
            (1, "2=1 4=2 5x 7=3 9=4"),
            (2, "2=1 4=2 5x 7=3 9=4"),
            (3, "2=1 4=2 5x 7=3 9=4"),
            (4, "4=2 5x 7=3 9=4"),
            (5, "5x 7=3 9=4"),
            (6, "7=3 9=4"),
            (8, "7=3 9=4"),
            (9, "9=4"),
            (20, "9=4"),
        ];
        for (compact, left) in expected {
            let mut history = example();
            history.compact(compact, |_| ());
            assert_eq!(text(&history), left, "compacted at {compact}");
        }
    }

    #[test]
    fn a_dead_key_leaves_nothing_after_compaction() {
        let mut history = example();
        history.delete(Revision { main: 11, sub: 0 });
        let mut bytes = 0;
        history.compact(11, |length| bytes += length);
        assert_eq!(text(&history), "11x");
        history.compact(12, |length| bytes += length);
        assert_eq!((history.len(), bytes), (0, 4));
    }
}
