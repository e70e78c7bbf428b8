//! Byte-level BPE: every byte is a printable character, and merges do the rest.
//!
//! The merging gets only tokens that text may become: control and unused ones stay
//! outside, so no merge can make them. Merges whose parts or result are no tokens are
//! refused.

use std::collections::HashSet;
use std::sync::LazyLock;

use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};

use super::index::Texts;
use super::merges::{Merges, Workspace};
use super::metadata::Metadata;
use super::pre::PreTokenizer;
use super::{TokenKind, TokenizerError};

/// Splits, maps bytes to tokens, merges.
pub(super) struct ByteLevel {
    pre: PreTokenizer,
    /// The token of each byte, where there is one.
    bytes: [Option<u32>; 256],
    merges: Merges,
}

impl ByteLevel {
    pub(super) fn read(
        metadata: &Metadata<'_>,
        texts: &Texts,
        kinds: &[TokenKind],
        pre: PreTokenizer,
    ) -> Result<Self, TokenizerError> {
        let ranked = read_merges(metadata, texts, kinds)?;
        let mut merges = Merges::with_capacity(ranked.len());
        for [left, right, joined] in ranked {
            merges.push(left, right, joined);
        }
        let token = |character: char| texts.find(character.encode_utf8(&mut [0; 4]));
        Ok(Self {
            bytes: TABLE
                .chars
                .map(|character| token(character).filter(|&id| is_text(kinds[id as usize]))),
            merges,
            pre,
        })
    }

    /// Appends the tokens of a text. A byte that has no token is left out.
    pub(super) fn encode(
        &self,
        texts: &Texts,
        kinds: &[TokenKind],
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut workspace = Workspace::default();
        let mut mapped = String::new();
        self.pre.split(text, &mut |piece| {
            if self.pre.ignores_merges() {
                mapped.clear();
                mapped.extend(piece.bytes().map(|byte| TABLE.chars[byte as usize]));
                let whole = texts.find(&mapped);
                if let Some(id) = whole.filter(|&id| is_text(kinds[id as usize])) {
                    ids.push(id);
                    return Ok(());
                }
            }
            let symbols = piece.bytes().filter_map(|byte| self.bytes[byte as usize]);
            self.merges.run(symbols, &mut workspace, ids);
            Ok(())
        })
    }
}

/// The merging of a vocabulary with ranked merges, for vocabularies whose characters are
/// not bytes.
pub(super) fn merging(
    metadata: &Metadata<'_>,
    texts: &Texts,
    kinds: &[TokenKind],
) -> Result<BpeBuilder, TokenizerError> {
    let mut vocabulary = Vocab::with_capacity(texts.len());
    for (id, text) in texts.iter() {
        if is_text(kinds[id as usize]) && !text.is_empty() {
            vocabulary.insert(text.to_owned(), id);
        }
    }
    let text = |id| texts.get(id).unwrap_or_default().to_owned();
    let mut seen = HashSet::new();
    let merges = read_merges(metadata, texts, kinds)?
        .into_iter()
        .filter(|[left, right, _]| seen.insert((*left, *right)))
        .map(|[left, right, _]| (text(left), text(right)))
        .collect();
    Ok(BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        // Its cache is per thread and outlives the model; ours would be freed with it.
        .cache_capacity(0))
}

/// The bytes that a token's characters stand for. A character outside the table stands
/// for itself, as in the reference.
pub(super) fn bytes_of(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match TABLE.bytes.get(character as usize) {
            Some(Some(byte)) => bytes.push(*byte),
            _ => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn is_text(kind: TokenKind) -> bool {
    matches!(
        kind,
        TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte
    )
}

/// Reads `tokenizer.ggml.merges`, by rank. Merges that touch tokens text may not become
/// are left out. Left, right and joined; of two for the same pair the first counts.
fn read_merges(
    metadata: &Metadata<'_>,
    texts: &Texts,
    kinds: &[TokenKind],
) -> Result<Vec<[u32; 3]>, TokenizerError> {
    const KEY: &str = "tokenizer.ggml.merges";
    let values = metadata.array(KEY)?;
    let mut merges = Vec::with_capacity(values.len());
    let mut joined = String::new();
    for (number, value) in values.iter().enumerate() {
        let merge = value.to_string().map_err(|_| TokenizerError::WrongType {
            key: KEY,
            expected: "an array of strings",
        })?;
        let refuse = |why| TokenizerError::Merge { number, why };
        let (left, right) = merge
            .split_once(' ')
            .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
            .ok_or_else(|| refuse("is not two texts with a space between"))?;
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let id = |text: &str| {
            texts
                .find(text)
                .ok_or_else(|| refuse("names a text that is no token"))
        };
        let merge = [id(left)?, id(right)?, id(&joined)?];
        if merge.iter().all(|id| is_text(kinds[*id as usize])) {
            merges.push(merge);
        }
    }
    Ok(merges)
}

struct Table {
    chars: [char; 256],
    bytes: [Option<u8>; 324],
}

/// GPT-2's printable stand-ins: printable Latin-1 is itself, the other 68 bytes are
/// U+0100 and up, in order (openai/gpt-2, `encoder.py`, `bytes_to_unicode`).
static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table {
        chars: ['\0'; 256],
        bytes: [None; 324],
    };
    let mut next = 0x100_u32;
    for byte in 0..=255_u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        table.chars[byte as usize] = char::from_u32(code).unwrap_or('\0');
        table.bytes[code as usize] = Some(byte);
    }
    table
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character_and_comes_back() {
        let text: String = TABLE.chars.iter().collect();
        assert_eq!(bytes_of(&text), (0..=255).collect::<Vec<u8>>());
        assert_eq!(TABLE.chars[b' ' as usize], 'Ġ');
        assert_eq!(TABLE.chars[b'\n' as usize], 'Ċ');
        assert_eq!(TABLE.chars[0xAD], 'Ń');
    }
}
