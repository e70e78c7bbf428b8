//! Tokens that are found in the text before anything else is.
//!
//! Leftmost first, then longest, as in the `tokenizers` crate.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::TokenKind;
use super::index::Texts;
use super::metadata::SpecialIds;

/// A part of a text that is to be encoded.
pub(super) enum Fragment<'t> {
    /// Plain text, never empty.
    Text(&'t str),
    /// A token that was found whole.
    Token(u32),
}

/// Control, unknown and user-defined tokens by their text.
pub(super) struct SpecialTokens {
    by_text: HashMap<Box<str>, u32>,
    /// By first byte: the lengths that occur, longest first.
    lengths: Vec<Vec<usize>>,
    strips_after: bool,
}

impl SpecialTokens {
    pub(super) fn new(texts: &Texts, kinds: &[TokenKind], strips_after: bool) -> Self {
        let mut by_text = HashMap::new();
        let mut lengths = vec![BTreeSet::new(); 256];
        for (id, text) in texts.iter() {
            let special = matches!(
                kinds[id as usize],
                TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined
            );
            if let (true, Some(&first)) = (special, text.as_bytes().first()) {
                by_text.insert(text.into(), id);
                lengths[first as usize].insert(text.len());
            }
        }
        Self {
            by_text,
            lengths: lengths
                .into_iter()
                .map(|set| set.into_iter().rev().collect())
                .collect(),
            strips_after,
        }
    }

    /// Cuts `text` at special tokens. Inside `user_text` (sorted or not, any number of
    /// ranges) only user-defined ones count.
    pub(super) fn split<'t>(
        &self,
        text: &'t str,
        kinds: &[TokenKind],
        user_text: &[Range<usize>],
    ) -> Vec<Fragment<'t>> {
        let mut fragments = Vec::new();
        let mut plain = 0;
        let mut at = 0;
        while at < text.len() {
            let Some((length, id)) = self.match_at(text, at, kinds, user_text) else {
                at += 1;
                continue;
            };
            if plain < at {
                fragments.push(Fragment::Text(&text[plain..at]));
            }
            fragments.push(Fragment::Token(id));
            at += length;
            if self.strips_after && !never_strips(&text[at - length..at]) {
                at += text[at..].len() - text[at..].trim_ascii_start().len();
            }
            plain = at;
        }
        if plain < text.len() {
            fragments.push(Fragment::Text(&text[plain..]));
        }
        fragments
    }

    /// Puts a zero-width space into the text of each control token.
    pub(super) fn defuse<'t>(&self, text: &'t str, kinds: &[TokenKind]) -> Cow<'t, str> {
        let mut defused = String::new();
        let mut copied = 0;
        for at in 0..text.len() {
            let found = self
                .matches_at(text, at)
                .any(|(length, id)| length > 0 && kinds[id as usize] != TokenKind::UserDefined);
            // Every place where one may begin, overlapping or not.
            if found {
                let first = text[at..].chars().next().map_or(1, char::len_utf8);
                defused.push_str(&text[copied..at + first]);
                defused.push('\u{200B}');
                copied = at + first;
            }
        }
        if copied == 0 {
            return Cow::Borrowed(text);
        }
        defused.push_str(&text[copied..]);
        Cow::Owned(defused)
    }

    fn match_at(
        &self,
        text: &str,
        at: usize,
        kinds: &[TokenKind],
        user_text: &[Range<usize>],
    ) -> Option<(usize, u32)> {
        self.matches_at(text, at).find(|&(length, id)| {
            kinds[id as usize] == TokenKind::UserDefined
                || !user_text
                    .iter()
                    .any(|user| user.start < at + length && at < user.end)
        })
    }

    /// Every special token that begins at `at`, longest first.
    fn matches_at<'a>(
        &'a self,
        text: &'a str,
        at: usize,
    ) -> impl Iterator<Item = (usize, u32)> + 'a {
        let lengths = &self.lengths[text.as_bytes()[at] as usize];
        lengths.iter().filter_map(move |&length| {
            let id = self.by_text.get(text.get(at..at + length)?)?;
            Some((length, *id))
        })
    }
}

/// True for the tokens of Phi-3 that leave the white space after them alone.
pub(crate) fn never_strips(text: &str) -> bool {
    matches!(text, "<unk>" | "<s>" | "<|endoftext|>")
}

/// Texts that end an answer wherever they are control tokens. Conversions often name only
/// one of several in the metadata; the fill-in-the-middle and file markers are here since
/// a model that emits one has left the answer (the list is llama.cpp's).
const ENDINGS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// All ids that end an answer, ascending.
///
/// `more` are those that a file names beside the ones with a role.
pub(super) fn end_of_generation(
    texts: &Texts,
    kinds: &[TokenKind],
    ids: &SpecialIds,
    more: Vec<u32>,
) -> Vec<u32> {
    let mut ends: BTreeSet<u32> = [ids.eos, ids.end_of_turn, ids.end_of_message]
        .into_iter()
        .flatten()
        .chain(more)
        .collect();
    let control = |text: &str| {
        texts
            .find(text)
            .filter(|&id| kinds[id as usize] == TokenKind::Control)
    };
    ends.extend(ENDINGS.iter().filter_map(|text| control(text)));
    // Where answers have several parts, `<|end|>` ends a part and others end the answer.
    let parts = (control("<|return|>").is_some() && control("<|call|>").is_some())
        || (control("<|calls|>").is_some() && control("<|flush|>").is_some());
    if let (true, Some(id)) = (parts, control("<|end|>")) {
        ends.remove(&id);
    }
    ends.into_iter().collect()
}

/// Some conversions mark turn endings as user-defined, which would let a user type them.
pub(super) fn correct_kinds(texts: &Texts, kinds: &mut [TokenKind]) {
    for text in [
        "<|eot_id|>",
        "<|im_end|>",
        "<|im_start|>",
        "<|end|>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|end_of_text|>",
    ] {
        if let Some(id) = texts.find(text)
            && kinds[id as usize] == TokenKind::UserDefined
        {
            kinds[id as usize] = TokenKind::Control;
        }
    }
}
