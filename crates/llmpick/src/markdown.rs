//! Markdown on a terminal, while it streams.
//!
//! Text appears as it comes; when a block closes (a blank line, the end of a code fence), its
//! raw rows are taken back and the rendered block stands in their place. A block that has
//! scrolled out of reach stays raw: nothing is ever shown twice.

use termimad::MadSkin;
use unicode_width::UnicodeWidthChar;

/// Turns pieces of markdown into what a terminal must be sent.
pub struct MarkdownStream {
    skin: MadSkin,
    columns: usize,
    rows: usize,
    /// Text of the block that is still open, already on the screen as it came.
    open: String,
}

impl MarkdownStream {
    /// For a terminal of so many columns and rows.
    pub fn new(columns: usize, rows: usize) -> Self {
        Self {
            skin: skin(),
            columns: columns.max(20),
            rows: rows.max(4),
            open: String::new(),
        }
    }

    /// What to print for the next piece.
    pub fn push(&mut self, piece: &str) -> String {
        let mut out = String::new();
        for line in piece.split_inclusive('\n') {
            self.open.push_str(line);
            out.push_str(line);
            if line.ends_with('\n') && closes(&self.open) {
                out.push_str(&self.replace());
            }
        }
        out
    }

    /// What to print at the end: the open block, rendered, and the cursor on a fresh line.
    pub fn finish(&mut self) -> String {
        if self.open.is_empty() {
            return String::new();
        }
        let mut out = String::new();
        if !self.open.ends_with('\n') {
            self.open.push('\n');
            out.push('\n');
        }
        out + &self.replace()
    }

    /// Takes the raw rows back and renders the block in their place.
    fn replace(&mut self) -> String {
        let block = std::mem::take(&mut self.open);
        let height = rows_of(&block, self.columns);
        if height >= self.rows || block.trim().is_empty() {
            return String::new();
        }
        let rendered = self
            .skin
            .text(block.trim_end(), Some(self.columns))
            .to_string();
        let blank = if block.ends_with("\n\n") { "\n" } else { "" };
        // Up to the block's first row, clear to the end of the screen, then the rendered text.
        format!(
            "\x1b[{height}A\r\x1b[J{}\n{blank}",
            rendered.trim_end_matches('\n')
        )
    }
}

fn skin() -> MadSkin {
    let mut skin = MadSkin::default();
    for header in &mut skin.headers {
        header.align = termimad::Alignment::Left;
    }
    skin
}

/// True when the text is whole blocks: no fence is open, and a fence or a blank line ended it.
fn closes(text: &str) -> bool {
    let is_fence = |line: &str| line.trim_start().starts_with("```");
    let fences = text.lines().filter(|line| is_fence(line)).count();
    let last = text.lines().last().unwrap_or_default();
    fences % 2 == 0 && (last.trim().is_empty() || is_fence(last))
}

/// Rows that text ending in a newline takes on a terminal that wraps at `columns`.
fn rows_of(text: &str, columns: usize) -> usize {
    let width = |line: &str| -> usize { line.chars().filter_map(UnicodeWidthChar::width).sum() };
    text.lines()
        .map(|line| width(line).div_ceil(columns).max(1))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_closes_at_a_blank_line_but_not_inside_a_fence() {
        assert!(closes("A *line*.\n\n"));
        assert!(!closes("A line.\n"));
        assert!(!closes("```rust\nfn a() {}\n\n"));
        assert!(closes("```rust\nfn a() {}\n```\n"));
    }

    #[test]
    fn wrapped_and_wide_text_is_counted_in_rows() {
        assert_eq!(rows_of("four\n", 20), 1);
        assert_eq!(rows_of(&format!("{}\n\n", "x".repeat(41)), 20), 4);
        assert_eq!(rows_of(&format!("{}\n", "한".repeat(11)), 20), 2);
    }

    #[test]
    fn the_raw_text_streams_first_and_is_then_replaced() {
        let mut stream = MarkdownStream::new(40, 24);
        assert_eq!(stream.push("Some **bo"), "Some **bo");
        let closing = stream.push("ld** text.\n\nNext");
        assert!(
            closing.starts_with("ld** text.\n\n\x1b[2A\r\x1b[J"),
            "{closing:?}"
        );
        assert!(!closing["ld** text.".len()..].contains("**"), "{closing:?}");
        assert!(closing.ends_with("Next"));
        assert!(stream.finish().contains("Next"));
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn a_block_taller_than_the_screen_stays_as_it_is() {
        let mut stream = MarkdownStream::new(40, 4);
        let tall = "- a\n".repeat(9) + "\n";
        assert_eq!(stream.push(&tall), tall);
    }
}
