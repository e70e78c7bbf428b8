//! Text from tokens as they come, in whole characters.

use super::{TokenKind, Tokenizer};

/// Decodes token by token. A character may be spread over several tokens; its bytes wait
/// here until it is whole. All pieces joined are exactly what decoding at once gives.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
    /// The next text is the first after nothing or a special token, where the vocabulary
    /// has put a space of its own.
    strip_space: bool,
    from_start: bool,
}

impl StreamDecoder {
    /// For tokens that continue a text, such as an answer after its prompt: a space at the
    /// beginning belongs to the text.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            pending: Vec::new(),
            strip_space: false,
            from_start: false,
        }
    }

    /// For tokens that are a text of their own, as [`Tokenizer::decode`] takes them: the
    /// space that some vocabularies put before a text is taken off.
    pub fn from_start(tokenizer: &Tokenizer) -> Self {
        let from_start = tokenizer.adds_space_prefix();
        Self {
            strip_space: from_start,
            from_start,
            ..Self::new(tokenizer)
        }
    }

    /// Takes one token; gives the characters that are now whole, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let special = !matches!(
            self.tokenizer.kind(id),
            Some(TokenKind::Normal | TokenKind::Byte)
        );
        let bytes = self.tokenizer.bytes(id);
        let mut bytes: &[u8] = &bytes;
        if special {
            self.strip_space = self.from_start;
        } else if std::mem::take(&mut self.strip_space) {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let text = take_characters(&mut self.pending);
        (!text.is_empty()).then_some(text)
    }

    /// Ends the text: a character that never became whole is U+FFFD. The decoder is then
    /// as new.
    pub fn finish(&mut self) -> Option<String> {
        self.strip_space = self.from_start;
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

/// Moves everything out of `pending` but the beginning of a character that may still
/// become whole. What can be no character is U+FFFD, as in [`String::from_utf8_lossy`].
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest: &[u8] = pending;
    loop {
        match std::str::from_utf8(rest) {
            Ok(whole) => {
                text.push_str(whole);
                rest = &[];
                break;
            }
            Err(error) => {
                let (whole, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(whole));
                match error.error_len() {
                    Some(invalid) => {
                        text.push('\u{FFFD}');
                        rest = &after[invalid..];
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
        }
    }
    *pending = rest.to_vec();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_one_at_a_time_read_as_all_at_once() {
        let samples: [&[u8]; 5] = [
            "héllo 漢字 😀\u{301}".as_bytes(),
            b"\xF0\x9F\x98",
            b"a\xFFb\xE2\x28\xA1\xED\xA0\x80c\xC0\x80",
            b"\xE2\x82\xF0\x9F",
            b"",
        ];
        for sample in samples {
            let (mut pending, mut text) = (Vec::new(), String::new());
            for &byte in sample {
                pending.push(byte);
                text.push_str(&take_characters(&mut pending));
                assert!(pending.len() <= 3);
            }
            text.push_str(&String::from_utf8_lossy(&pending));
            assert_eq!(text, String::from_utf8_lossy(sample));
        }
    }
}
