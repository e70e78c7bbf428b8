//! A map from names, for look-ups on the way to a decision: every arm of a request is looked
//! up, and a tree's comparisons of texts cost more than all the arithmetic on what they find.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name with its hash, for many look-ups of one name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    hash: u64,
    name: &'a str,
}

impl<'a> Key<'a> {
    #[inline]
    pub(crate) fn new(name: &'a str) -> Self {
        let hash = hash(name.as_bytes());
        Self { hash, name }
    }
}

/// Values by name; a name never leaves. Written in the order of the names, so that one state
/// is one text.
#[derive(Clone, Debug)]
pub(crate) struct Named<V> {
    entries: Vec<Entry<V>>,
    /// Open addressing, linear: places in `entries`, at most half of them taken.
    places: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Entry<V> {
    hash: u64,
    name: Box<str>,
    value: V,
}

const FREE: u32 = u32::MAX;

impl<V> Named<V> {
    /// The place of a name in `entries`.
    #[inline]
    fn place(&self, key: Key<'_>) -> Option<usize> {
        let mask = self.places.len().checked_sub(1)?;
        let mut at = key.hash as usize & mask;
        loop {
            // A free place ends the search, and half of them are free.
            let entry = self.entries.get(self.places[at] as usize)?;
            if entry.hash == key.hash && *entry.name == *key.name {
                return Some(self.places[at] as usize);
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    pub(crate) fn find(&self, key: Key<'_>) -> Option<&V> {
        self.place(key).map(|place| &self.entries[place].value)
    }

    #[inline]
    pub(crate) fn get(&self, name: &str) -> Option<&V> {
        self.find(Key::new(name))
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut V> {
        let place = self.place(Key::new(name))?;
        Some(&mut self.entries[place].value)
    }

    pub(crate) fn contains_key(&self, name: &str) -> bool {
        self.place(Key::new(name)).is_some()
    }

    pub(crate) fn insert(&mut self, name: &str, value: V) {
        let key = Key::new(name);
        if let Some(place) = self.place(key) {
            self.entries[place].value = value;
            return;
        }
        self.entries.push(Entry {
            hash: key.hash,
            name: name.into(),
            value,
        });
        let last = self.entries.len() - 1;
        if 2 * self.entries.len() <= self.places.len() {
            self.take(last);
            return;
        }
        let room = (4 * self.entries.len()).next_power_of_two();
        self.places = vec![FREE; room];
        (0..=last).for_each(|entry| self.take(entry));
    }

    /// Puts an entry into the first free place from its own on.
    fn take(&mut self, entry: usize) {
        let mask = self.places.len() - 1;
        let mut at = self.entries[entry].hash as usize & mask;
        while self.places[at] != FREE {
            at = (at + 1) & mask;
        }
        self.places[at] = entry as u32;
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// In the order in which they came.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|entry| &entry.value)
    }

    /// In the order in which they came.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().map(|entry| &mut entry.value)
    }

    fn sorted(&self) -> BTreeMap<&str, &V> {
        let entries = self.entries.iter();
        entries.map(|entry| (&*entry.name, &entry.value)).collect()
    }
}

impl<V> Default for Named<V> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            places: Vec::new(),
        }
    }
}

impl<V: PartialEq> PartialEq for Named<V> {
    /// The order in which they came is no matter.
    fn eq(&self, other: &Self) -> bool {
        self.sorted() == other.sorted()
    }
}

impl<V: Serialize> Serialize for Named<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.sorted().serialize(serializer)
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Named<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let sorted = BTreeMap::<String, V>::deserialize(deserializer)?;
        let mut named = Named::default();
        for (name, value) in sorted {
            named.insert(&name, value);
        }
        Ok(named)
    }
}

// Odd numbers without a pattern, from the digits of √2 and of the golden ratio.
const SEED: u64 = 0x6a09_e667_f3bc_c909;
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash for short texts: one long multiplication for eight bytes. Names that collide on
/// purpose cost no more than the number of names allows, and that is bounded.
#[inline]
fn hash(bytes: &[u8]) -> u64 {
    let mix = |sum: u64, word: u64| {
        let product = u128::from(sum ^ word) * u128::from(FACTOR);
        (product as u64) ^ ((product >> 64) as u64)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = SEED ^ bytes.len() as u64;
    for word in words {
        sum = mix(sum, u64::from_le_bytes(*word));
    }
    let last = rest
        .iter()
        .rev()
        .fold(0, |word, &b| word << 8 | u64::from(b));
    mix(mix(sum, last), SEED)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_found_again_and_written_in_order() {
        let mut map = Named::default();
        let names = ["b", "", "a", "a\0", "a-long-name-of-an-arm", "a-long-name"];
        for (place, name) in names.iter().enumerate() {
            assert!(!map.contains_key(name));
            map.insert(name, place);
        }
        assert_eq!(map.len(), names.len());
        for (place, name) in names.iter().enumerate() {
            assert_eq!(map.get(name), Some(&place));
        }
        assert_eq!(map.get("c"), None);
        let text = serde_json::to_string(&map).unwrap();
        assert_eq!(
            text,
            r#"{"":1,"a":2,"a\u0000":3,"a-long-name":5,"a-long-name-of-an-arm":4,"b":0}"#
        );
        assert_eq!(serde_json::from_str::<Named<usize>>(&text).unwrap(), map);
    }

    #[test]
    fn numbered_names_spread() {
        let mut map = Named::default();
        (0..4096).for_each(|k| map.insert(&format!("arm-{k:02}"), k));
        let found = (0..4096).map(|k| map.get(&format!("arm-{k:02}")) == Some(&k));
        assert!(found.into_iter().all(|found| found));
        // Random hashes at this load need half a step beyond the first on average.
        let mask = map.places.len() - 1;
        let taken = map.places.iter().enumerate().filter(|(_, p)| **p != FREE);
        let steps = taken.map(|(at, &entry)| {
            let own = map.entries[entry as usize].hash as usize;
            at.wrapping_sub(own) & mask
        });
        let steps: usize = steps.sum();
        assert!(steps < 4096, "{steps}");
    }
}
