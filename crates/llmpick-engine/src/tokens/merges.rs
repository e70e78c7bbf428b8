//! Byte pair encoding by rank: of all neighbours that have a merge, the one of the lowest
//! rank is joined first, the leftmost of equals.
//!
//! The same merging as in the `tokenizers` crate, which the tests hold it against. That one
//! keeps each token's text three times in maps; here a merge is sixteen bytes in one table,
//! which is filled in a few milliseconds while a model loads.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, RandomState};

/// What two neighbours become, by their ids.
pub(super) struct Merges {
    /// Open addressing; a power of two, at least half as many again as there are merges.
    table: Vec<Merge>,
    count: usize,
    seed: u64,
}

#[derive(Clone, Copy)]
struct Merge {
    left: u32,
    right: u32,
    rank: u32,
    joined: u32,
}

/// No merge makes this id: vocabularies are smaller.
const FREE: Merge = Merge {
    left: u32::MAX,
    right: u32::MAX,
    rank: u32::MAX,
    joined: u32::MAX,
};

const NONE: u32 = u32::MAX;

/// Memory for the merging of one piece after the other.
#[derive(Default)]
pub(super) struct Workspace {
    symbols: Vec<Symbol>,
    /// Rank and place of pairs, and what they would become.
    queue: BinaryHeap<Reverse<(u32, u32, u32)>>,
}

struct Symbol {
    /// [`NONE`] once joined to its left neighbour.
    id: u32,
    previous: u32,
    next: u32,
}

impl Merges {
    /// Room for so many merges.
    pub(super) fn with_capacity(merges: usize) -> Self {
        let slots = (merges + merges / 2 + 1).next_power_of_two();
        Self {
            table: vec![FREE; slots],
            count: 0,
            // A file cannot know what to put in for everything to collide.
            seed: RandomState::new().hash_one(0u8) | 1,
        }
    }

    /// Adds the merge that comes after all others. Of two for the same pair, the first
    /// counts. More than there is room for are left out.
    pub(super) fn push(&mut self, left: u32, right: u32, joined: u32) {
        let slot = self.slot(left, right);
        if self.table[slot].joined == NONE && 3 * self.count < 2 * self.table.len() {
            self.table[slot] = Merge {
                left,
                right,
                rank: self.count as u32,
                joined,
            };
            self.count += 1;
        }
    }

    /// Joins `symbols` as far as they go and appends what is left to `ids`.
    pub(super) fn run(
        &self,
        symbols: impl Iterator<Item = u32>,
        workspace: &mut Workspace,
        ids: &mut Vec<u32>,
    ) {
        let Workspace {
            symbols: row,
            queue,
        } = workspace;
        row.clear();
        queue.clear();
        row.extend(symbols.zip(0u32..).map(|(id, number)| Symbol {
            id,
            previous: number.wrapping_sub(1),
            next: number + 1,
        }));
        if let Some(last) = row.last_mut() {
            last.next = NONE;
        }
        for at in 0..row.len() {
            self.offer(row, queue, at as u32);
        }
        while let Some(Reverse((_, at, joined))) = queue.pop() {
            let left = &row[at as usize];
            // The pair may have changed since: then what it is now was queued by itself.
            let right = left.next;
            let now = match row.get(right as usize) {
                Some(right) if left.id != NONE => self.get(left.id, right.id),
                _ => None,
            };
            if now.is_none_or(|now| now.joined != joined) {
                continue;
            }
            let next = row[right as usize].next;
            row[right as usize].id = NONE;
            let left = &mut row[at as usize];
            (left.id, left.next) = (joined, next);
            let previous = left.previous;
            if let Some(next) = row.get_mut(next as usize) {
                next.previous = at;
            }
            self.offer(row, queue, previous);
            self.offer(row, queue, at);
        }
        let mut at = 0;
        while let Some(symbol) = row.get(at as usize) {
            ids.push(symbol.id);
            at = symbol.next;
        }
    }

    /// Queues the pair that begins at `at`, if it has a merge.
    fn offer(&self, row: &[Symbol], queue: &mut BinaryHeap<Reverse<(u32, u32, u32)>>, at: u32) {
        let Some(left) = row.get(at as usize) else {
            return;
        };
        let Some(right) = row.get(left.next as usize) else {
            return;
        };
        if let Some(merge) = self.get(left.id, right.id) {
            queue.push(Reverse((merge.rank, at, merge.joined)));
        }
    }

    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        let merge = self.table[self.slot(left, right)];
        (merge.joined != NONE).then_some(merge)
    }

    /// The slot of a pair, or the free one where it belongs; a third of them is free.
    fn slot(&self, left: u32, right: u32) -> usize {
        let mask = self.table.len() - 1;
        let key = u64::from(left) << 32 | u64::from(right);
        let product = u128::from(key ^ self.seed) * u128::from(self.seed);
        let mut slot = (product >> 64 ^ product) as usize & mask;
        loop {
            let merge = &self.table[slot];
            if merge.joined == NONE || (merge.left, merge.right) == (left, right) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64;
    use tokenizers::Model as _;
    use tokenizers::models::bpe::{BPE, Vocab};

    use super::*;

    #[test]
    fn it_joins_as_the_tokenizers_crate_does() {
        let mut random = Pcg64::seed_from_u64(5);
        for _ in 0..60 {
            // Merges of what is there already, in any order, some of them twice.
            let mut texts: Vec<String> = ('a'..='e').map(String::from).collect();
            let mut pairs = Vec::new();
            for _ in 0..random.random_range(0..60) {
                let mut any = || random.random_range(0..texts.len());
                let (left, right) = (any(), any());
                let joined = format!("{}{}", texts[left], texts[right]);
                let id = texts.iter().position(|text| *text == joined);
                let id = id.unwrap_or_else(|| {
                    texts.push(joined);
                    texts.len() - 1
                });
                if !pairs.iter().any(|(pair, _)| *pair == (left, right)) {
                    pairs.push(((left, right), id));
                }
            }
            let mut merges = Merges::with_capacity(pairs.len());
            for ((left, right), id) in &pairs {
                merges.push(*left as u32, *right as u32, *id as u32);
                // The first one counts.
                merges.push(*left as u32, *right as u32, 0);
            }
            let vocabulary: Vocab = texts.iter().cloned().zip(0..).collect();
            let named = pairs
                .iter()
                .map(|((left, right), _)| (texts[*left].clone(), texts[*right].clone()));
            let bpe = BPE::builder()
                .vocab_and_merges(vocabulary, named.collect::<Vec<_>>())
                .build()
                .unwrap();
            let mut workspace = Workspace::default();
            for _ in 0..50 {
                let length = random.random_range(0..40);
                let text: String = (0..length)
                    .map(|_| random.random_range('a'..='e'))
                    .collect();
                let wanted = bpe.tokenize(&text).unwrap();
                let wanted: Vec<u32> = wanted.iter().map(|token| token.id).collect();
                let mut ids = Vec::new();
                let symbols = text.bytes().map(|byte| u32::from(byte - b'a'));
                merges.run(symbols, &mut workspace, &mut ids);
                assert_eq!(ids, wanted, "{text} {pairs:?} {texts:?}");
            }
        }
    }
}
