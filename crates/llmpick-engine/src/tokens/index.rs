//! The texts of all tokens, and the way from a text back to its id.
//!
//! One arena and one table of ids instead of a map of owned strings: a vocabulary of
//! 262,144 tokens loads in a few allocations.

use std::hash::{BuildHasher, RandomState};

use super::TokenizerError;
use super::metadata::Metadata;

const EMPTY: u32 = u32::MAX;

/// Token texts by id.
pub(super) struct Texts {
    arena: String,
    /// Where each text ends in the arena.
    ends: Vec<u32>,
    /// Open addressing over ids; a power of two at least twice the number of tokens.
    table: Vec<u32>,
    hasher: RandomState,
}

impl Texts {
    /// Reads `tokenizer.ggml.tokens`.
    pub(super) fn read(metadata: &Metadata<'_>) -> Result<Self, TokenizerError> {
        const KEY: &str = "tokenizer.ggml.tokens";
        let values = metadata.array(KEY)?;
        // Ids and table slots are u32, and ids of models are far below this.
        if values.is_empty() || values.len() > (1 << 28) {
            return Err(TokenizerError::VocabularySize(values.len()));
        }
        let mut texts = Self {
            arena: String::new(),
            ends: Vec::with_capacity(values.len()),
            table: vec![EMPTY; (values.len() * 2).next_power_of_two()],
            hasher: RandomState::new(),
        };
        for value in values {
            let text = value.to_string().map_err(|_| TokenizerError::WrongType {
                key: KEY,
                expected: "an array of strings",
            })?;
            texts.arena.push_str(text);
            let end = u32::try_from(texts.arena.len())
                .map_err(|_| TokenizerError::TooLong(texts.arena.len()))?;
            texts.ends.push(end);
            texts.insert(texts.ends.len() as u32 - 1);
        }
        Ok(texts)
    }

    /// The number of tokens.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The text of a token as the file spells it.
    pub(super) fn get(&self, id: u32) -> Option<&str> {
        let end = *self.ends.get(id as usize)? as usize;
        let start = match id {
            0 => 0,
            _ => self.ends[id as usize - 1] as usize,
        };
        self.arena.get(start..end)
    }

    /// The token with this text; the last one, where several have it.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        match self.table[self.slot(text)] {
            EMPTY => None,
            id => Some(id),
        }
    }

    /// All tokens, by ascending id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..self.len() as u32).filter_map(|id| self.get(id).map(|text| (id, text)))
    }

    fn insert(&mut self, id: u32) {
        if let Some(text) = self.get(id) {
            let slot = self.slot(text);
            self.table[slot] = id;
        }
    }

    /// The slot that holds `text`, or the free one where it belongs. The table is at most
    /// half full, so there is one.
    fn slot(&self, text: &str) -> usize {
        let mask = self.table.len() - 1;
        let mut slot = self.hasher.hash_one(text) as usize & mask;
        loop {
            let id = self.table[slot];
            if id == EMPTY || self.get(id) == Some(text) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}
