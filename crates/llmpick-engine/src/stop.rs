//! Hold text back while it may still become a stop string.

/// Passes text on as soon as no part of it can belong to a stop string.
pub(crate) struct StopFilter {
    stops: Vec<String>,
    held: String,
}

/// What came of a push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Text that is surely no part of a stop string.
    pub text: String,
    /// A stop string was completed; nothing after it counts.
    pub stopped: bool,
}

impl StopFilter {
    /// Empty stop strings would match everywhere and are the caller's to refuse.
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
        }
    }

    /// Takes new text.
    pub fn push(&mut self, text: &str) -> Passed {
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|s| self.held.find(s)).min();
        if let Some(at) = first {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Passed {
                text,
                stopped: true,
            };
        }
        let safe = self.held.len() - self.possible_start();
        let rest = self.held.split_off(safe);
        Passed {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// The text still held back, once no more will come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end that begin a stop string.
    fn possible_start(&self) -> usize {
        self.held
            .char_indices()
            .map(|(at, _)| &self.held[at..])
            .find(|tail| self.stops.iter().any(|stop| stop.starts_with(*tail)))
            .map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stops: &[&str], pieces: &[&str], shown: &str, stopped: bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut filter = StopFilter::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            let passed = filter.push(piece);
            out.push_str(&passed.text);
            if passed.stopped {
                assert!(stopped);
                assert_eq!(out, shown);
                return;
            }
        }
        out.push_str(&filter.finish());
        assert!(!stopped);
        assert_eq!(out, shown);
    }

    #[test]
    fn no_part_of_a_stop_string_is_shown() {
        check(&["\n\n"], &["a\n", "b\n", "\nc"], "a\nb", true);
        check(&["END"], &["E", "EN", "D"], "E", true);
        check(&["END"], &["the E", "N"], "the EN", false);
        check(&["로마"], &["나는 로", "마"], "나는 ", true);
        check(&["b", "ab"], &["xab"], "x", true);
        check(&[], &["any", "thing"], "anything", false);
        check(&["aab"], &["a", "a", "a", "b"], "a", true);
    }

    #[test]
    fn text_that_cannot_stop_is_passed_at_once() {
        let mut filter = StopFilter::new(&["###".to_owned()]);
        assert_eq!(filter.push("one # two").text, "one # two");
        assert_eq!(filter.push(" #").text, " ");
        assert_eq!(filter.push("#x").text, "##x");
    }
}
