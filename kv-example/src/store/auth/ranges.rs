//! Sets of keys, as ranges.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::super::Span;

/// Keys in ranges, merged so that no two of them touch: each begins at a key, and ends before another or never.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<Vec<u8>, End>);

/// The key before which a range ends; none: it does not end.
type End = Option<Vec<u8>>;

/// Later ends are greater.
fn by_end(one: Option<&[u8]>, two: Option<&[u8]>) -> Ordering {
    match (one, two) {
        (Some(one), Some(two)) => one.cmp(two),
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
    }
}

/// The key right behind this one: nothing is between them.
fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// A span as a beginning and an end. An empty one is taken for its first key, so that it is never permitted to whoever may not even touch that.
fn bounds(span: Span<'_>) -> (&[u8], End) {
    match span {
        Span::Between(first, end) if first < end => (first, Some(end.to_vec())),
        Span::One(key) | Span::Between(key, _) => (key, Some(behind(key))),
        Span::From(first) => (first, None),
    }
}

impl Ranges {
    pub(super) fn insert(&mut self, span: Span<'_>) {
        let (first, mut end) = bounds(span);
        let mut first = first.to_vec();
        // From the last range that begins where this one ends or before, as long as they touch.
        while let Some((start, stop)) = self.last_up_to(end.as_deref()) {
            if stop.is_some_and(|stop| stop < &first[..]) {
                break;
            }
            let start = start.to_vec();
            let stop = self.0.remove(&start).flatten();
            if by_end(stop.as_deref(), end.as_deref()).is_gt() {
                end = stop;
            }
            first = first.min(start);
        }
        self.0.insert(first, end);
    }

    /// The last range that begins at this key or before; with none, the last of all.
    fn last_up_to(&self, key: Option<&[u8]>) -> Option<(&[u8], Option<&[u8]>)> {
        let last = match key {
            Some(key) => {
                self.0.range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key))).next_back()
            }
            None => self.0.last_key_value(),
        };
        last.map(|(start, end)| (&start[..], end.as_deref()))
    }

    /// Where the range ends that holds this key, if one does.
    fn end_at(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        let (_, end) = self.last_up_to(Some(key))?;
        end.is_none_or(|end| key < end).then_some(end)
    }
}

/// Whether several sets together hold all keys of a span.
pub(super) fn cover<'a>(sets: impl Iterator<Item = &'a Ranges> + Clone, span: Span<'_>) -> bool {
    let (first, end) = bounds(span);
    let mut reached = first;
    loop {
        match sets.clone().filter_map(|set| set.end_at(reached)).max_by(|one, two| by_end(*one, *two)) {
            None => return false,
            Some(None) => return true,
            // Further than before, since the range holds the key reached before.
            Some(Some(next)) => reached = next,
        }
        if end.as_deref().is_some_and(|end| end <= reached) {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A span of keys of one byte from 1 to 20, by two numbers.
    fn parts((first, end): (u8, u8)) -> (Vec<u8>, Vec<u8>) {
        let end = match end {
            0 => vec![],
            21 => vec![0],
            end => vec![end],
        };
        (vec![first + 1], end)
    }

    /// Keys that tell the spans apart: each first byte alone, and with something behind it.
    fn probes() -> impl Iterator<Item = Vec<u8>> {
        (1u8..24).flat_map(|byte| [vec![byte], vec![byte, 0], vec![byte, 7]])
    }

    fn holds(span: Span<'_>, key: &[u8]) -> bool {
        match span {
            // An empty one counts as its first key.
            Span::Between(first, end) if end <= first => first == key,
            Span::One(_) | Span::Between(..) | Span::From(_) => span.contains(key),
        }
    }

    #[test]
    fn what_touches_is_one_range() {
        let mut ranges = Ranges::default();
        ranges.insert(Span::Between(b"b", b"c"));
        ranges.insert(Span::Between(b"d", b"f"));
        assert!(!cover([&ranges].into_iter(), Span::Between(b"b", b"f")));
        ranges.insert(Span::Between(b"c", b"d"));
        assert!(cover([&ranges].into_iter(), Span::Between(b"b", b"f")));
        assert_eq!(ranges.0.len(), 1);
        ranges.insert(Span::One(b"a"));
        ranges.insert(Span::Between(b"a\0", b"b"));
        assert_eq!(ranges.0.len(), 1, "nothing is between a key and the same with a zero byte behind it");
        ranges.insert(Span::From(b"e"));
        assert!(cover([&ranges].into_iter(), Span::From(b"a")) && !cover([&ranges].into_iter(), Span::From(b"Z")));
    }

    /// A known bug of another store: who may read one key read everything behind it.
    #[test]
    fn one_key_permits_no_range_from_it_on() {
        let mut ranges = Ranges::default();
        ranges.insert(Span::One(b"k"));
        for span in [Span::From(b"k"), Span::Between(b"k", b"l"), Span::Between(b"k", b"k\0\0"), Span::One(b"k\0")] {
            assert!(!cover([&ranges].into_iter(), span), "{span:?}");
        }
        assert!(
            cover([&ranges].into_iter(), Span::One(b"k")) && cover([&ranges].into_iter(), Span::Between(b"k", b"k\0"))
        );
    }

    #[test]
    fn nothing_is_covered_by_nothing() {
        for span in [Span::One(b"k"), Span::Between(b"b", b"a"), Span::From(b"")] {
            assert!(!cover(std::iter::empty(), span) && !cover([&Ranges::default()].into_iter(), span));
        }
    }

    proptest! {
        #[test]
        fn a_span_is_covered_if_each_of_its_keys_is(
            sets in prop::collection::vec(prop::collection::vec((0u8..20, 0u8..22), 0..6), 0..4),
            asked in (0u8..20, 0u8..22),
        ) {
            let spans: Vec<Vec<_>> = sets.iter().map(|set| set.iter().map(|span| parts(*span)).collect()).collect();
            let merged: Vec<Ranges> = spans
                .iter()
                .map(|set| {
                    let mut ranges = Ranges::default();
                    set.iter().for_each(|(first, end)| ranges.insert(Span::new(first, end)));
                    ranges
                })
                .collect();
            for ranges in &merged {
                let ends: Vec<_> = ranges.0.iter().collect();
                for pair in ends.windows(2) {
                    prop_assert!(pair[0].1.as_ref().is_some_and(|end| end < pair[1].0), "they touch: {:?}", ranges);
                }
            }
            let (first, end) = parts(asked);
            let asked = Span::new(&first, &end);
            let held = |key: &[u8]| spans.iter().flatten().any(|(first, end)| holds(Span::new(first, end), key));
            let wanted = probes().filter(|key| holds(asked, key)).all(|key| held(&key));
            prop_assert_eq!(cover(merged.iter(), asked), wanted);
        }
    }
}
