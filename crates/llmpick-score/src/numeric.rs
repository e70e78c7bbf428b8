//! The last number of an answer against the right one.

use llmpick_core::{Outcome, Score, Scorer, ScorerError};

/// 1 when the answer's number equals the reference within the tolerance, 0 otherwise.
///
/// The answer's number is the one after the last `####` (as in GSM8K), else the one after a
/// closing "answer is", else the last of all. Thousands separators, currency signs and units
/// around numbers do not matter. A percentage equals its number and its hundredth: `25%` is
/// right where `25`, `25 %` or `0.25` is.
#[derive(Clone, Copy, Debug)]
pub struct Numeric {
    /// Difference allowed, relative to the reference where that is above 1, absolute below.
    pub tolerance: f64,
}

impl Default for Numeric {
    fn default() -> Self {
        Self { tolerance: 1e-6 }
    }
}

impl Scorer for Numeric {
    fn name(&self) -> &str {
        "numeric"
    }

    fn score(&self, outcome: &Outcome) -> Result<Option<Score>, ScorerError> {
        let Some(reference) = outcome.reference.as_deref().and_then(only_number) else {
            return Ok(None);
        };
        let right = answer_number(&outcome.response)
            .is_some_and(|number| number.equals(reference, self.tolerance));
        Ok(Some(Score::from_correct(right)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Number {
    value: f64,
    percent: bool,
}

impl Number {
    fn equals(self, right: Number, tolerance: f64) -> bool {
        let close = |a: f64, b: f64| (a - b).abs() <= tolerance * b.abs().max(1.0);
        if close(self.value, right.value) {
            return true;
        }
        match (self.percent, right.percent) {
            (true, false) => close(self.value / 100.0, right.value),
            (false, true) => close(self.value, right.value / 100.0),
            _ => false,
        }
    }
}

/// The number that an answer comes to.
fn answer_number(response: &str) -> Option<Number> {
    if let Some((_, rest)) = response.rsplit_once("####") {
        return numbers(rest).into_iter().next();
    }
    let after = crate::exact::after_answer(response).map(numbers);
    match after.as_deref() {
        Some([number, ..]) => Some(*number),
        _ => numbers(response).pop(),
    }
}

/// The number of a reference that is nothing but one, give or take a currency sign or `####`.
fn only_number(reference: &str) -> Option<Number> {
    let text = match reference.rsplit_once("####") {
        Some((_, rest)) => rest,
        None => reference,
    };
    let text = text.trim();
    let bare = |c: char| c.is_alphabetic() && !matches!(c, 'e' | 'E');
    match numbers(text).as_slice() {
        [number] if !text.chars().any(bare) => Some(*number),
        _ => None,
    }
}

/// Every number in a text, in order.
fn numbers(text: &str) -> Vec<Number> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        // Digits inside a word (`x2`, `H2O`) are part of a name.
        let in_word = at > 0
            && chars.get(at).is_some_and(char::is_ascii_digit)
            && chars.get(at - 1).is_some_and(|c| c.is_alphabetic());
        match read(&chars, at).filter(|_| !in_word) {
            Some((number, end)) => {
                found.push(number);
                at = end;
            }
            None if in_word => {
                at += 1;
                while chars.get(at).is_some_and(char::is_ascii_digit) {
                    at += 1;
                }
            }
            None => at += 1,
        }
    }
    found
}

/// A number that starts at `at`, and where it ends.
fn read(chars: &[char], at: usize) -> Option<(Number, usize)> {
    let get = |i: usize| chars.get(i).copied();
    let digit = |i: usize| get(i).is_some_and(|c| c.is_ascii_digit());
    let mut text = String::new();
    let mut i = at;
    if matches!(get(i), Some('-' | '−' | '+')) {
        // Between two numbers it is an operator.
        if at > 0 && digit(at - 1) {
            return None;
        }
        if get(i) != Some('+') {
            text.push('-');
        }
        i += 1;
        if get(i) == Some('$') {
            i += 1;
        }
    }
    let fraction = get(i) == Some('.') && digit(i + 1);
    if !digit(i) && !fraction {
        return None;
    }
    while let Some(c) = get(i) {
        let group = matches!(c, ',' | '\u{a0}' | '\u{202f}' | '_')
            && (1..=3).all(|k| digit(i + k))
            && !digit(i + 4);
        match c {
            '0'..='9' => text.push(c),
            _ if group => {}
            _ => break,
        }
        i += 1;
    }
    if get(i) == Some('.') && digit(i + 1) {
        text.push('.');
        i += 1;
        while digit(i) {
            text.extend(get(i));
            i += 1;
        }
    }
    if let Some(end) = exponent(chars, i) {
        text.extend(chars.get(i..end).unwrap_or_default());
        i = end;
    }
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite())?;
    let space = usize::from(matches!(get(i), Some(' ' | '\u{a0}' | '\u{202f}')));
    let percent = get(i + space) == Some('%');
    Some((Number { value, percent }, i))
}

/// Where an exponent (`e5`, `E-3`) that starts at `at` ends.
fn exponent(chars: &[char], at: usize) -> Option<usize> {
    let digit = |i: usize| chars.get(i).is_some_and(char::is_ascii_digit);
    if !matches!(chars.get(at), Some('e' | 'E')) {
        return None;
    }
    let sign = usize::from(matches!(chars.get(at + 1), Some('-' | '+')));
    let mut end = at + 1 + sign;
    if !digit(end) {
        return None;
    }
    while digit(end) {
        end += 1;
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::score;

    fn right(response: &str, reference: &str) -> Option<bool> {
        score(&Numeric::default(), response, reference).map(|score| score == 1.0)
    }

    #[test]
    fn the_last_number_counts() {
        for (response, reference) in [
            ("18", "18"),
            ("She makes 9 * 2 = $18 a day.", "18"),
            ("16-3-4=9\n#### 18\nThat took 3 steps.", "#### 18"),
            ("So the answer is 18, after 3 steps.", "18"),
            ("It costs $1,234,567.50.", "1234567.5"),
            ("12 000 or rather 12\u{202f}000", "12,000"),
            ("−5 degrees", "-5"),
            ("-$5", "-5"),
            ("6.02e23", "6.02E23"),
            ("a third is .3333333333", "0.33333333334"),
            ("18.", "18.0"),
            ("about 25 %", "0.25"),
            ("0.25", "25%"),
            ("25%", "25"),
        ] {
            assert_eq!(
                right(response, reference),
                Some(true),
                "{response} / {reference}"
            );
        }
    }

    #[test]
    fn other_numbers_and_none_are_wrong() {
        for (response, reference) in [
            ("", "18"),
            ("eighteen", "18"),
            ("18 or 19", "18"),
            ("180", "18"),
            ("5-3", "-3"),
            ("1,5", "1.5"),
            ("0.25", "25"),
            ("H2", "2"),
        ] {
            assert_eq!(
                right(response, reference),
                Some(false),
                "{response} / {reference}"
            );
        }
    }

    #[test]
    fn only_a_number_is_a_reference_for_it() {
        for reference in ["Paris", "B", "", "3 apples", "1 or 2", "H2O"] {
            assert_eq!(right("3", reference), None, "{reference}");
        }
    }

    #[test]
    fn the_tolerance_is_relative_above_one() {
        let loose = Numeric { tolerance: 0.01 };
        assert_eq!(score(&loose, "1009", "1000"), Some(1.0));
        assert_eq!(score(&loose, "1011", "1000"), Some(0.0));
        assert_eq!(score(&loose, "0.009", "0"), Some(1.0));
    }
}
