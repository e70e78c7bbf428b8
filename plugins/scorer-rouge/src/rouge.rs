//! The measure itself: words, what two texts have in common, the F-measure of it.

use std::collections::HashMap;

/// Runs of letters and digits, lower-cased.
pub(crate) fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// How many units each text has, and how many they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    reference: usize,
    response: usize,
    shared: usize,
}

impl Counts {
    /// ROUGE-N (section 2 of the paper, one reference): an n-gram that occurs several times
    /// counts as often as in the text that has fewer of it.
    pub(crate) fn of_ngrams(reference: &[String], response: &[String], n: usize) -> Self {
        let (wanted, given) = (ngrams(reference, n), ngrams(response, n));
        let shared = wanted
            .iter()
            .map(|(ngram, &count)| count.min(given.get(ngram).copied().unwrap_or_default()))
            .sum();
        Self {
            reference: reference.len().saturating_sub(n - 1),
            response: response.len().saturating_sub(n - 1),
            shared,
        }
    }

    /// ROUGE-L (section 3.1): the longest common subsequence of words, the whole text as one
    /// sequence.
    pub(crate) fn of_subsequence(reference: &[String], response: &[String]) -> Self {
        Self {
            reference: reference.len(),
            response: response.len(),
            shared: longest_common_subsequence(reference, response),
        }
    }

    /// Precision and recall with equal weight (β = 1); `None` where the reference has nothing
    /// to compare.
    pub(crate) fn f_measure(self) -> Option<f64> {
        if self.reference == 0 {
            return None;
        }
        let precision = self.shared as f64 / self.response.max(1) as f64;
        let recall = self.shared as f64 / self.reference as f64;
        let sum = precision + recall;
        Some(if sum > 0.0 {
            2.0 * precision * recall / sum
        } else {
            0.0
        })
    }
}

fn ngrams(words: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for ngram in words.windows(n) {
        *counts.entry(ngram).or_default() += 1;
    }
    counts
}

/// O(n·m) steps with one row of the table, the shorter text's.
fn longest_common_subsequence(left: &[String], right: &[String]) -> usize {
    let (long, short) = match left.len() < right.len() {
        true => (right, left),
        false => (left, right),
    };
    // Comparing numbers is quicker than comparing words.
    let mut numbers = HashMap::new();
    let short: Vec<usize> = short
        .iter()
        .map(|word| {
            let next = numbers.len();
            *numbers.entry(word).or_insert(next)
        })
        .collect();
    let mut row = vec![0; short.len() + 1];
    for word in long {
        let Some(&number) = numbers.get(word) else {
            continue; // In no subsequence.
        };
        let mut diagonal = 0;
        for (place, &other) in short.iter().enumerate() {
            let above = row[place + 1];
            row[place + 1] = if other == number {
                diagonal + 1
            } else {
                above.max(row[place])
            };
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grades(reference: &str, response: &str) -> [Option<f64>; 3] {
        let (reference, response) = (words(reference), words(response));
        [
            Counts::of_ngrams(&reference, &response, 1).f_measure(),
            Counts::of_ngrams(&reference, &response, 2).f_measure(),
            Counts::of_subsequence(&reference, &response).f_measure(),
        ]
    }

    /// F-measures of `rouge-score` 0.1.2 (PyPI), `use_stemmer=False`. The second and third
    /// pair are the example of section 3.1 of the paper.
    #[test]
    fn grades_are_those_of_rouge_score() {
        let cases = [
            (
                "the cat was under the bed",
                "the cat was found under the bed",
                [0.923076923076923, 0.7272727272727272, 0.923076923076923],
            ),
            (
                "police killed the gunman",
                "police kill the gunman",
                [0.75, 0.3333333333333333, 0.75],
            ),
            (
                "police killed the gunman",
                "the gunman kill police",
                [0.75, 0.3333333333333333, 0.5],
            ),
            (
                "The quick brown fox jumps over the lazy dog.",
                "The quick brown dog jumps on the log.",
                [0.7058823529411765, 0.26666666666666666, 0.5882352941176471],
            ),
            ("testing one two", "testing", [0.5, 0.0, 0.5]),
            (
                "a b a b a",
                "b a a",
                [0.7499999999999999, 0.3333333333333333, 0.7499999999999999],
            ),
            ("It's 3.14, isn't it?", "its 3 14 is it", [0.5, 0.2, 0.5]),
            ("one two three", "four five", [0.0, 0.0, 0.0]),
            (
                "the the the the",
                "the the",
                [0.6666666666666666, 0.5, 0.6666666666666666],
            ),
            (
                "in 2024 the model's F1-score rose by 5%",
                "The F1 score of the model rose 5 percent in 2024",
                [0.761904761904762, 0.3157894736842105, 0.47619047619047616],
            ),
            ("the dog", "", [0.0, 0.0, 0.0]),
        ];
        for (reference, response, expected) in cases {
            for (grade, expected) in grades(reference, response).into_iter().zip(expected) {
                let close = grade.is_some_and(|grade| (grade - expected).abs() < 1e-12);
                assert!(
                    close,
                    "`{reference}`, `{response}`: {grade:?}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn without_words_in_the_reference_there_is_no_grade() {
        assert_eq!(grades("", "anything"), [None; 3]);
        assert_eq!(grades("?!", "?!"), [None; 3]);
        assert_eq!(grades("rouge", "rouge"), [Some(1.0), None, Some(1.0)]);
    }

    #[test]
    fn words_are_letters_and_digits_of_any_script() {
        assert_eq!(
            words("Größe, naïve—café: 3.14"),
            ["größe", "naïve", "café", "3", "14"]
        );
        assert_eq!(grades("Größe", "die größe")[0], Some(2.0 / 3.0));
    }

    #[test]
    fn the_subsequence_is_the_longest_of_all() {
        // Against the plain recursion, over every pair of short texts of three words.
        fn plain(left: &[String], right: &[String]) -> usize {
            match (left.split_first(), right.split_first()) {
                (Some((l, left_rest)), Some((r, right_rest))) if l == r => {
                    1 + plain(left_rest, right_rest)
                }
                (Some((_, left_rest)), Some((_, right_rest))) => {
                    plain(left_rest, right).max(plain(left, right_rest))
                }
                _ => 0,
            }
        }
        let text = |mut number: usize, length: usize| -> Vec<String> {
            let mut letter = || {
                let letter = ["a", "b", "c"][number % 3];
                number /= 3;
                letter.to_owned()
            };
            (0..length).map(|_| letter()).collect()
        };
        for left in 0..243 {
            for right in 0..81 {
                let (left, right) = (text(left, 5), text(right, 4));
                let expected = plain(&left, &right);
                assert_eq!(
                    longest_common_subsequence(&left, &right),
                    expected,
                    "{left:?} {right:?}"
                );
            }
        }
    }
}
