//! Multiple choice: the letter, or the option's own words.

use llmpick_core::{Outcome, Score, Scorer, ScorerError};

use crate::exact::{after_answer, normalise};

/// 1 when the answer picks the reference's option, 0 otherwise.
///
/// The answer picks a letter by naming it after a closing "answer is" or "answer:", by starting
/// with it (`B`, `B.`, `(B) …`), or by naming one letter in brackets and no other. Failing that it
/// picks an option whose text it contains, if it contains no other's; the texts are read from
/// lines of the prompt such as `B. lead apron`, and from the reference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice;

impl Scorer for Choice {
    fn name(&self) -> &str {
        "choice"
    }

    fn score(&self, outcome: &Outcome) -> Result<Option<Score>, ScorerError> {
        let Some(right) = outcome.reference.as_deref().and_then(Listed::parse) else {
            return Ok(None);
        };
        let mut options: Vec<Listed> = outcome.prompt.lines().filter_map(Listed::parse).collect();
        options.retain(|option| !option.text.is_empty() && option.letter != right.letter);
        let text = outcome
            .prompt
            .lines()
            .filter_map(Listed::parse)
            .find(|option| option.letter == right.letter && !option.text.is_empty());
        let letter = right.letter;
        options.push(text.unwrap_or(right));
        let picked = named_letter(&outcome.response, &options)
            .or_else(|| named_text(&outcome.response, &options));
        Ok(Some(Score::from_correct(picked == Some(letter))))
    }
}

/// One option: its letter in upper case, and its normalised text, which may be empty.
struct Listed {
    letter: char,
    text: String,
}

impl Listed {
    /// Reads `B`, `(B)`, `B.`, `B) lead apron`, `B: lead apron`.
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        let open = line.strip_prefix('(');
        let mut chars = open.unwrap_or(line).chars();
        let letter = chars.next().filter(|c| is_letter(*c))?;
        let rest = chars.as_str();
        let text = match (open, rest.chars().next()) {
            (None, None) => "",
            (Some(_), Some(')')) | (None, Some('.' | ')' | ':')) => rest.get(1..)?,
            _ => return None,
        };
        Some(Self {
            letter: letter.to_ascii_uppercase(),
            text: normalise(text),
        })
    }
}

/// Letters that options have.
fn is_letter(c: char) -> bool {
    matches!(c, 'A'..='J' | 'a'..='j')
}

fn named_letter(response: &str, options: &[Listed]) -> Option<char> {
    let response = response
        .trim()
        .trim_start_matches(['*', '_', '`', '#', ' ']);
    let known = |letter: char| {
        // Where the prompt lists its options, no other letter is one.
        options.len() < 2 || options.iter().any(|option| option.letter == letter)
    };
    after_answer(response)
        .and_then(leading_letter)
        .or_else(|| leading_letter(response))
        .or_else(|| bracketed_letter(response))
        .filter(|letter| known(*letter))
}

/// The letter a text starts with, if it stands alone there.
fn leading_letter(text: &str) -> Option<char> {
    let text = text.trim_start_matches(['(', '*', '_', '`', '"', '\'', '[', ' ']);
    let mut chars = text.chars();
    // A lower-case letter is more often the article or a word.
    let letter = chars
        .next()
        .filter(|c| is_letter(*c) && c.is_ascii_uppercase())?;
    let closes = |c: char| {
        matches!(
            c,
            '.' | ')' | ':' | ',' | '*' | '_' | '`' | '"' | '\'' | ']' | '\n'
        )
    };
    chars.next().is_none_or(closes).then_some(letter)
}

/// The one letter that stands in brackets, if there is one and no other.
fn bracketed_letter(text: &str) -> Option<char> {
    let mut found = None;
    let chars: Vec<char> = text.chars().collect();
    for three in chars.windows(3) {
        if let ['(', letter, ')'] = three
            && is_letter(*letter)
        {
            let letter = letter.to_ascii_uppercase();
            if found.is_some_and(|other| other != letter) {
                return None;
            }
            found = Some(letter);
        }
    }
    found
}

/// The option whose text the answer contains, if it contains no other's. An option whose text is
/// part of another's that is contained too does not count.
fn named_text(response: &str, options: &[Listed]) -> Option<char> {
    let response = format!(" {} ", normalise(response));
    let contained: Vec<&Listed> = options
        .iter()
        .filter(|option| !option.text.is_empty())
        .filter(|option| response.contains(&format!(" {} ", option.text)))
        .collect();
    let longest = contained.iter().max_by_key(|option| option.text.len())?;
    let inside = |option: &&&Listed| longest.text.contains(&option.text);
    (contained.iter().filter(inside).count() == contained.len()).then_some(longest.letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: &str = "Which keeps mold spores out?\nA. safety goggles\nB. breathing mask\n\
                          C) rubber gloves\n(D) gloves\nAnswer:";

    fn right(prompt: &str, response: &str, reference: &str) -> Option<bool> {
        let outcome = Outcome {
            prompt: prompt.into(),
            response: response.into(),
            reference: Some(reference.into()),
            ..Outcome::default()
        };
        let score = Choice.score(&outcome).ok().flatten();
        score.map(|score| score.get() == 1.0)
    }

    #[test]
    fn letter_or_text_picks_the_option() {
        for response in [
            "B",
            " B.",
            "(B)",
            "**B**",
            "B) breathing mask",
            "B: because spores float",
            "A mask filters air, so the answer is B.",
            "Goggles only protect eyes.\nAnswer: (B)",
            "Of these, (B) fits best.",
            "A breathing mask.",
            "You want the Breathing Mask for that",
        ] {
            assert_eq!(right(PROMPT, response, "B"), Some(true), "{response}");
        }
        assert_eq!(right("", "a lead apron", "B. lead apron"), Some(true));
        assert_eq!(right(PROMPT, "wear rubber gloves", "C"), Some(true));
        assert_eq!(right(PROMPT, "wear gloves", "(D)"), Some(true));
    }

    #[test]
    fn anything_else_is_wrong() {
        for response in [
            "",
            "C",
            "A",
            "the answer is A, not B",
            "Be careful",
            "(A) or (B)",
            "safety goggles and a breathing mask",
            "E",
        ] {
            assert_eq!(right(PROMPT, response, "B"), Some(false), "{response}");
        }
    }

    #[test]
    fn only_an_option_is_a_reference_for_it() {
        for reference in ["Paris", "Be good", "A dog", "12", "", "Z", "(B"] {
            assert_eq!(right(PROMPT, "B", reference), None, "{reference}");
        }
    }
}
