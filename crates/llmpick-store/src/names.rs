//! Order and patterns of names: `part10` comes after `part9`.

use std::cmp::Ordering;

/// Compares names with every run of digits taken as a number.
pub(crate) fn natural_cmp(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let (digits_a, digits_b) = (leading_digits(a), leading_digits(b));
        if !digits_a.is_empty() && !digits_b.is_empty() {
            // Without leading zeros the longer number is the greater one, so no number is
            // too long to compare.
            let (x, y) = (trim_zeros(digits_a), trim_zeros(digits_b));
            match x.len().cmp(&y.len()).then_with(|| x.cmp(y)) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
            (a, b) = (skip(a, digits_a.len()), skip(b, digits_b.len()));
            continue;
        }
        match (a.split_first(), b.split_first()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some((x, rest_a)), Some((y, rest_b))) => match x.cmp(y) {
                Ordering::Equal => (a, b) = (rest_a, rest_b),
                unequal => return unequal,
            },
        }
    }
}

fn leading_digits(text: &[u8]) -> &[u8] {
    let end = text.iter().take_while(|c| c.is_ascii_digit()).count();
    text.get(..end).unwrap_or_default()
}

fn trim_zeros(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().take_while(|c| **c == b'0').count();
    skip(digits, zeros)
}

fn skip(text: &[u8], count: usize) -> &[u8] {
    text.get(count..).unwrap_or_default()
}

/// Whether `name` matches `pattern`, in which `*` stands for any text, slashes included.
pub(crate) fn matches_pattern(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(name) = name.strip_prefix(head) else {
        return false;
    };
    (0..=name.len())
        .filter(|at| name.is_char_boundary(*at))
        .any(|at| matches_pattern(rest, name.get(at..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_as_numbers() {
        let mut names = vec![
            "x-part10",
            "x-part9",
            "x-part1",
            "x-part02",
            "x",
            "x-part100",
        ];
        names.sort_by(|a, b| natural_cmp(a, b));
        assert_eq!(
            names,
            [
                "x",
                "x-part1",
                "x-part02",
                "x-part9",
                "x-part10",
                "x-part100"
            ]
        );
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, expected) in [
            ("a/b.gguf", "a/b.gguf", true),
            ("a/b.gguf", "a/b.ggufx", false),
            ("*/data/part*.bin", "pkg/data/part07.bin", true),
            ("*/data/part*.bin", "pkg/data/part07.bin.txt", false),
            ("*/data/part*.bin", "pkg/__init__.py", false),
            ("*", "", true),
        ] {
            assert_eq!(matches_pattern(pattern, name), expected, "{pattern} {name}");
        }
    }
}
