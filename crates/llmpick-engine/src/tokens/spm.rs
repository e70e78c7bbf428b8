//! SentencePiece by scores: of all neighbours whose joined text is a token, the pair with
//! the best score is joined first, the leftmost of equals.
//!
//! This is the merging of SentencePiece's BPE model (`bpe_model.cc`) as llama.cpp runs it
//! over a whole text. Two deviations from llama.cpp, both SentencePiece's own behaviour:
//! control, unknown and byte tokens are never made by joining, and an unused token that
//! was made is taken apart again.
//!
//! A space is `▁` inside, so a `▁` in the text comes back as a space: that loss is in the
//! format.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

use super::index::Texts;
use super::metadata::Metadata;
use super::{TokenKind, TokenizerError, byte_level};

const SPACE: &str = "\u{2581}";

/// How pieces are joined, and whether a space is put before a text.
pub(super) struct SentencePiece {
    joining: Rule,
    prefix: Prefix,
}

/// What is joined first.
enum Rule {
    /// The best score, as SentencePiece itself and GGUF have it.
    Scores(Scores),
    /// The merge of the lowest rank, as a `tokenizer.json` has it.
    Ranks(Box<BPE>),
}

/// Scores, and what stands for single bytes.
struct Scores {
    scores: Vec<f32>,
    joinable: Vec<Joinable>,
    bytes: Vec<u32>,
}

/// When a space is put before a text.
#[derive(Clone, Copy, PartialEq)]
enum Prefix {
    Never,
    /// Where it follows nothing or a special token.
    Segment,
    /// The same, unless the text begins with one.
    Always,
    /// Only at the beginning, unless the text begins with one.
    First,
}

/// What stands before a text that is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Nothing,
    Special,
    Text,
}

#[derive(Clone, Copy, PartialEq)]
enum Joinable {
    Never,
    Always,
    /// May be a step on the way, not a result.
    OnTheWay,
}

/// A run of text that is one token so far. `length` 0: joined into its left neighbour.
struct Symbol {
    start: u32,
    length: u32,
    previous: u32,
    next: u32,
}

const NONE: u32 = u32::MAX;

struct Pair {
    score: f32,
    left: u32,
    right: u32,
    length: u32,
    id: u32,
}

impl Ord for Pair {
    /// The best score first, then the leftmost. Scores are never NaN.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .partial_cmp(&other.score)
            .unwrap_or(Ordering::Equal)
            .then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl SentencePiece {
    pub(super) fn read(
        metadata: &Metadata<'_>,
        texts: &Texts,
        kinds: &[TokenKind],
        unknown: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        let adds = metadata.flag("tokenizer.ggml.add_space_prefix")?;
        let prefix = match metadata.optional_string("tokenizer.llmpick.space_prefix")? {
            _ if adds == Some(false) => Prefix::Never,
            Some("always") => Prefix::Always,
            Some("first") => Prefix::First,
            _ => Prefix::Segment,
        };
        let is_ranked =
            !metadata.has("tokenizer.ggml.scores") && metadata.has("tokenizer.ggml.merges");
        let joining = match is_ranked {
            true => Rule::Ranks(Box::new(ranks(metadata, texts, kinds)?)),
            false => Rule::Scores(Scores::read(metadata, texts, kinds, unknown)?),
        };
        Ok(Self { joining, prefix })
    }

    /// True when a space is put before a text.
    pub(super) fn adds_space_prefix(&self) -> bool {
        self.prefix != Prefix::Never
    }

    /// True when merges are ranked: then every token is spelt with `▁` for a space.
    pub(super) fn is_ranked(&self) -> bool {
        matches!(self.joining, Rule::Ranks(_))
    }

    pub(super) fn encode(
        &self,
        texts: &Texts,
        text: &str,
        before: Before,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut escaped = String::with_capacity(text.len() + 3);
        let starts_a_segment = before != Before::Text;
        let has_one = text.starts_with(' ') || text.starts_with(SPACE);
        if match self.prefix {
            Prefix::Never => false,
            Prefix::Segment => starts_a_segment,
            // Behind any special or user-defined token, as the library has it.
            Prefix::Always => !has_one,
            Prefix::First => before == Before::Nothing && !has_one,
        } {
            escaped.push_str(SPACE);
        }
        for (number, part) in text.split(' ').enumerate() {
            if number > 0 {
                escaped.push_str(SPACE);
            }
            escaped.push_str(part);
        }
        if u32::try_from(escaped.len()).is_err() {
            return Err(TokenizerError::TooLong(text.len()));
        }
        match &self.joining {
            Rule::Scores(scores) => scores.encode(texts, &escaped, ids),
            Rule::Ranks(bpe) => {
                let tokens = bpe.tokenize(&escaped).map_err(TokenizerError::Encode)?;
                ids.extend(tokens.iter().map(|token| token.id));
            }
        }
        Ok(())
    }
}

/// The merging by rank; what it lacks is written in bytes.
fn ranks(
    metadata: &Metadata<'_>,
    texts: &Texts,
    kinds: &[TokenKind],
) -> Result<BPE, TokenizerError> {
    for byte in 0..=255_u8 {
        byte_token(texts, byte, None)?;
    }
    byte_level::merging(metadata, texts, kinds)?
        .byte_fallback(true)
        .ignore_merges(
            metadata
                .flag("tokenizer.llmpick.ignore_merges")?
                .unwrap_or(false),
        )
        .build()
        .map_err(TokenizerError::Build)
}

impl Scores {
    fn read(
        metadata: &Metadata<'_>,
        texts: &Texts,
        kinds: &[TokenKind],
        unknown: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        let bytes = (0..=255_u8)
            .map(|byte| byte_token(texts, byte, unknown))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            scores: metadata.scores(texts.len())?,
            joinable: kinds
                .iter()
                .map(|kind| match kind {
                    TokenKind::Normal | TokenKind::UserDefined => Joinable::Always,
                    TokenKind::Unused => Joinable::OnTheWay,
                    _ => Joinable::Never,
                })
                .collect(),
            bytes,
        })
    }

    fn encode(&self, texts: &Texts, escaped: &str, ids: &mut Vec<u32>) {
        Joining {
            vocabulary: self,
            texts,
            text: escaped,
            symbols: symbols(escaped),
            queue: BinaryHeap::new(),
            apart: HashMap::new(),
        }
        .run(ids);
    }

    fn find(&self, texts: &Texts, text: &str) -> Option<u32> {
        texts
            .find(text)
            .filter(|&id| self.joinable[id as usize] != Joinable::Never)
    }
}

/// The work on one text.
struct Joining<'a> {
    vocabulary: &'a Scores,
    texts: &'a Texts,
    text: &'a str,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair>,
    /// For an unused token that was made: how long its left part was.
    apart: HashMap<u32, u32>,
}

impl Joining<'_> {
    fn run(mut self, ids: &mut Vec<u32>) {
        for right in 1..self.symbols.len() as u32 {
            self.offer(right - 1, right);
        }
        while let Some(pair) = self.queue.pop() {
            let left = &self.symbols[pair.left as usize];
            let right = &self.symbols[pair.right as usize];
            // Either part may have been joined to something else since. If none has, the
            // two are still neighbours: nothing between them can appear.
            if left.length == 0 || right.length == 0 || left.length + right.length != pair.length {
                continue;
            }
            self.join(&pair);
        }
        let mut at = 0;
        while let Some(symbol) = self.symbols.get(at as usize) {
            let (start, end) = (
                symbol.start as usize,
                (symbol.start + symbol.length) as usize,
            );
            self.write(&self.text[start..end], ids);
            at = symbol.next;
        }
    }

    fn join(&mut self, pair: &Pair) {
        let right = &mut self.symbols[pair.right as usize];
        let (length, next) = (right.length, right.next);
        right.length = 0;
        let left = &mut self.symbols[pair.left as usize];
        if self.vocabulary.joinable[pair.id as usize] == Joinable::OnTheWay {
            self.apart.insert(pair.id, left.length);
        }
        left.length += length;
        left.next = next;
        let previous = left.previous;
        if let Some(next) = self.symbols.get_mut(next as usize) {
            next.previous = pair.left;
        }
        self.offer(previous, pair.left);
        self.offer(pair.left, next);
    }

    /// Queues a pair if its joined text is a token.
    fn offer(&mut self, left: u32, right: u32) {
        let (Some(first), Some(second)) = (
            self.symbols.get(left as usize),
            self.symbols.get(right as usize),
        ) else {
            return;
        };
        let length = first.length + second.length;
        let text = &self.text[first.start as usize..(first.start + length) as usize];
        if let Some(id) = self.vocabulary.find(self.texts, text) {
            self.queue.push(Pair {
                score: self.vocabulary.scores[id as usize],
                left,
                right,
                length,
                id,
            });
        }
    }

    /// The tokens of a finished symbol. A stack, not recursion: the depth is the file's.
    fn write(&self, text: &str, ids: &mut Vec<u32>) {
        let mut parts = vec![text];
        while let Some(text) = parts.pop() {
            match self.vocabulary.find(self.texts, text) {
                Some(id) => match self.apart.get(&id) {
                    Some(&left) if (left as usize) < text.len() => {
                        let (left, right) = text.split_at(left as usize);
                        parts.push(right);
                        parts.push(left);
                    }
                    _ => ids.push(id),
                },
                None => ids.extend(
                    text.bytes()
                        .map(|byte| self.vocabulary.bytes[byte as usize]),
                ),
            }
        }
    }
}

/// One symbol a character.
fn symbols(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = text
        .char_indices()
        .enumerate()
        .map(|(number, (start, character))| Symbol {
            start: start as u32,
            length: character.len_utf8() as u32,
            previous: (number as u32).wrapping_sub(1),
            next: number as u32 + 1,
        })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.next = NONE;
    }
    symbols
}

/// The byte that `<0xE2>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// `▁` as the space it stands for.
pub(super) fn unescape(text: &str) -> Cow<'_, [u8]> {
    if text.contains(SPACE) {
        Cow::Owned(text.replace(SPACE, " ").into_bytes())
    } else {
        Cow::Borrowed(text.as_bytes())
    }
}

fn byte_token(texts: &Texts, byte: u8, unknown: Option<u32>) -> Result<u32, TokenizerError> {
    let single = [byte];
    texts
        .find(&format!("<0x{byte:02X}>"))
        .or_else(|| texts.find(std::str::from_utf8(&single).ok()?))
        .or(unknown)
        .ok_or(TokenizerError::NoByteToken(byte))
}
