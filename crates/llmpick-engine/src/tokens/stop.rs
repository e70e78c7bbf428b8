//! Ends an answer before a stop string, without ever showing a part of it.
//!
//! Text that may be the beginning of a stop string is held back until it is clear that it
//! is not. How the text is cut into pieces changes nothing.

/// Watches text for stop strings.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

/// What came of a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text that is safe to show.
    pub text: String,
    /// The stop string that was reached, by its number. The text before it is in `text`;
    /// nothing comes after.
    pub stop: Option<usize>,
}

/// A stop string of no characters would stop everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stop string is empty")]
pub struct EmptyStop;

impl StopMatcher {
    /// Stops before the first of `stops` to be complete; of those that are complete at
    /// the same character, before the longest.
    ///
    /// # Errors
    /// When a stop string is empty.
    pub fn new(stops: &[String]) -> Result<Self, EmptyStop> {
        if stops.iter().any(String::is_empty) {
            return Err(EmptyStop);
        }
        Ok(Self {
            stops: stops.to_vec(),
            held: String::new(),
            stopped: false,
        })
    }

    /// Takes more text. After a stop, nothing more comes out.
    pub fn push(&mut self, text: &str) -> StopStep {
        if self.stopped {
            return StopStep::default();
        }
        let already = self.held.len();
        self.held.push_str(text);
        if let Some((stop, start)) = self.first_stop(already) {
            self.stopped = true;
            self.held.truncate(start);
            return StopStep {
                text: std::mem::take(&mut self.held),
                stop: Some(stop),
            };
        }
        let hold = self.beginning_of_a_stop();
        let held = self.held.split_off(self.held.len() - hold);
        StopStep {
            text: std::mem::replace(&mut self.held, held),
            stop: None,
        }
    }

    /// The answer is over: what was held back was no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The earliest end of a stop string after byte `already` (none ends before), and
    /// where that stop string starts.
    fn first_stop(&self, already: usize) -> Option<(usize, usize)> {
        let earliest = |stop: &String| {
            // Only a match that ends in the new text can be new.
            let from = (already + 1).saturating_sub(stop.len());
            let from = (from..=self.held.len()).find(|&at| self.held.is_char_boundary(at))?;
            Some(from + self.held[from..].find(stop.as_str())? + stop.len())
        };
        let (number, stop, end) = self
            .stops
            .iter()
            .enumerate()
            .filter_map(|(number, stop)| Some((number, stop, earliest(stop)?)))
            .min_by_key(|(_, stop, end)| (*end, usize::MAX - stop.len()))?;
        Some((number, end - stop.len()))
    }

    /// Bytes at the end that some stop string begins with.
    fn beginning_of_a_stop(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        (1..longest.min(held.len() + 1))
            .rev()
            .find(|&length| {
                let start = held.len() - length;
                self.held.is_char_boundary(start)
                    && self.stops.iter().any(|stop| {
                        stop.len() > length && stop.as_bytes().starts_with(&held[start..])
                    })
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rand::{Rng, SeedableRng};

    fn run(stops: &[String], pieces: &[String]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops).unwrap();
        let mut shown = String::new();
        for piece in pieces {
            let step = matcher.push(piece);
            shown.push_str(&step.text);
            if step.stop.is_some() {
                assert_eq!(matcher.push("more"), StopStep::default());
                assert_eq!(matcher.finish(), "");
                return (shown, step.stop);
            }
        }
        shown.push_str(&matcher.finish());
        (shown, None)
    }

    /// The rule said plainly: at the earliest end, the longest stop string.
    fn plain(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in 0..=text.len() {
            let longest = (0..stops.len())
                .filter(|&n| text.is_char_boundary(end) && text[..end].ends_with(&stops[n]))
                .max_by_key(|&n| (stops[n].len(), stops.len() - n));
            if let Some(stop) = longest {
                return (text[..end - stops[stop].len()].to_owned(), Some(stop));
            }
        }
        (text.to_owned(), None)
    }

    fn check(stops: &[&str], pieces: &[&str], expected: &str) {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(run(&own(stops), &own(pieces)).0, expected);
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_never_shown() {
        check(&["\nUser:"], &["Hi", "\n", "Us", "er: x"], "Hi");
        check(&["\nUser:"], &["Hi\nUs", "ing it"], "Hi\nUsing it");
        check(&["END"], &["EN", "END"], "EN");
        check(&["aab"], &["a", "a", "a", "b"], "a");
        check(&["abcd", "bc"], &["ab", "c"], "a");
        check(&["끝"], &["이제 ", "끝", "!"], "이제 ");
        check(&[], &["as it ", "is"], "as it is");
    }

    #[test]
    fn text_that_cannot_be_a_stop_string_comes_at_once() {
        let mut matcher = StopMatcher::new(&["###".to_owned()]).unwrap();
        assert_eq!(matcher.push("abc").text, "abc");
        assert_eq!(matcher.push("d#").text, "d");
        assert_eq!(matcher.push("e").text, "#e");
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert_eq!(StopMatcher::new(&[String::new()]).unwrap_err(), EmptyStop);
    }

    #[test]
    fn any_cut_gives_what_the_joined_text_gives() {
        let mut random = rand_pcg::Pcg64::seed_from_u64(7);
        let letters = ['a', 'b', 'é', '가'];
        let mut word = |longest: usize, shortest: usize| -> String {
            let length = random.random_range(shortest..=longest);
            (0..length)
                .map(|_| letters[random.random_range(0..letters.len())])
                .collect()
        };
        for _ in 0..20_000 {
            let stops: Vec<String> = (0..3).map(|_| word(4, 1)).collect();
            let pieces: Vec<String> = (0..8).map(|_| word(4, 0)).collect();
            let (text, stop) = run(&stops, &pieces);
            let (plain_text, plain_stop) = plain(&stops, &pieces.concat());
            assert_eq!(text, plain_text, "{stops:?} {pieces:?}");
            assert_eq!(stop.map(|n| &stops[n]), plain_stop.map(|n| &stops[n]));
        }
    }
}
