//! Reading tables: comma-separated values with a header, quotes as in RFC 4180.

/// Why a text is no table we can use. Lines are counted from 1, the header's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// Nothing there.
    #[error("it is empty: a header and rows were expected")]
    Empty,
    /// More or fewer cells than the header has.
    #[error("line {line} has {found} cells, and the header {expected}")]
    Ragged {
        /// The line.
        line: usize,
        /// Its cells.
        found: usize,
        /// The header's.
        expected: usize,
    },
    /// A quote that is not closed.
    #[error("a quote opened in line {line} is not closed")]
    Unclosed {
        /// The line.
        line: usize,
    },
    /// A column that is needed.
    #[error("there is no column `{name}`; there are {found}")]
    NoColumn {
        /// Its name.
        name: String,
        /// The columns there are.
        found: String,
    },
    /// A cell that should hold a number.
    #[error("line {line}: `{cell}` is not a number")]
    NotANumber {
        /// The line.
        line: usize,
        /// What is there.
        cell: String,
    },
}

/// A table in memory.
#[derive(Debug)]
pub(crate) struct Sheet {
    header: Vec<String>,
    /// Each with the line it began in; as wide as the header.
    rows: Vec<(usize, Vec<String>)>,
}

impl Sheet {
    pub(crate) fn parse(text: &str) -> Result<Self, CsvError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut records = records(text)?.into_iter();
        let (_, header) = records.next().ok_or(CsvError::Empty)?;
        let rows: Vec<_> = records.collect();
        let expected = header.len();
        match rows.iter().find(|(_, row)| row.len() != expected) {
            Some((line, row)) => Err(CsvError::Ragged {
                line: *line,
                found: row.len(),
                expected,
            }),
            None => Ok(Self { header, rows }),
        }
    }

    pub(crate) fn header(&self) -> &[String] {
        &self.header
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The index of a column.
    pub(crate) fn column(&self, name: &str) -> Result<usize, CsvError> {
        let place = self.header.iter().position(|column| column == name);
        place.ok_or_else(|| CsvError::NoColumn {
            name: name.to_owned(),
            found: self.header.join(", "),
        })
    }

    /// A cell; empty beyond the table.
    pub(crate) fn text(&self, row: usize, column: usize) -> &str {
        let cells = self.rows.get(row).map(|(_, cells)| cells);
        cells
            .and_then(|cells| cells.get(column))
            .map_or("", String::as_str)
    }

    /// The line a row began in.
    pub(crate) fn line(&self, row: usize) -> usize {
        self.rows.get(row).map_or(0, |(line, _)| *line)
    }

    /// A cell as a finite number.
    pub(crate) fn number(&self, row: usize, column: usize) -> Result<f64, CsvError> {
        let cell = self.text(row, column).trim();
        let number = cell.parse::<f64>().ok().filter(|x| x.is_finite());
        number.ok_or_else(|| CsvError::NotANumber {
            line: self.line(row),
            cell: cell.to_owned(),
        })
    }

    /// A cell as a number, `None` where it is blank.
    pub(crate) fn optional(&self, row: usize, column: usize) -> Result<Option<f64>, CsvError> {
        if self.text(row, column).trim().is_empty() {
            return Ok(None);
        }
        self.number(row, column).map(Some)
    }
}

/// Records with the line each began in; blank lines are none.
fn records(text: &str) -> Result<Vec<(usize, Vec<String>)>, CsvError> {
    let mut records = Vec::new();
    let (mut cells, mut cell) = (Vec::new(), String::new());
    let (mut line, mut begun, mut quote) = (1, 1, None);
    let mut characters = text.chars().peekable();
    let mut end = |cells: &mut Vec<String>, cell: &mut String, begun: usize| {
        cells.push(std::mem::take(cell));
        let record = std::mem::take(cells);
        if record.len() > 1 || record.iter().any(|cell| !cell.trim().is_empty()) {
            records.push((begun, record));
        }
    };
    while let Some(c) = characters.next() {
        match (c, quote) {
            ('"', Some(_)) if characters.peek() == Some(&'"') => {
                characters.next();
                cell.push('"');
            }
            ('"', Some(_)) => quote = None,
            ('"', None) if cell.is_empty() => quote = Some(line),
            (',', None) => cells.push(std::mem::take(&mut cell)),
            ('\r', None) if characters.peek() == Some(&'\n') => {}
            ('\n', None) => {
                end(&mut cells, &mut cell, begun);
                line += 1;
                begun = line;
            }
            (c, _) => {
                line += usize::from(c == '\n');
                cell.push(c);
            }
        }
    }
    if let Some(line) = quote {
        return Err(CsvError::Unclosed { line });
    }
    end(&mut cells, &mut cell, begun);
    Ok(records)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cells_quotes_and_line_ends() {
        let sheet = Sheet::parse("\u{feff}a,b\r\n1,\"x, \"\"y\"\"\n z\"\n\n,2").unwrap();
        assert_eq!(sheet.header(), ["a", "b"]);
        assert_eq!(sheet.rows(), 2);
        assert_eq!(sheet.text(0, 1), "x, \"y\"\n z");
        assert_eq!(sheet.optional(1, 0), Ok(None));
        assert_eq!((sheet.number(1, 1), sheet.line(1)), (Ok(2.0), 5));
        assert_eq!(sheet.text(9, 9), "");
    }

    #[test]
    fn what_is_no_table_is_told_by_line() {
        assert_eq!(Sheet::parse("\n").unwrap_err(), CsvError::Empty);
        let ragged = CsvError::Ragged {
            line: 3,
            found: 1,
            expected: 2,
        };
        assert_eq!(Sheet::parse("a,b\n1,2\n3\n").unwrap_err(), ragged);
        let unclosed = CsvError::Unclosed { line: 2 };
        assert_eq!(Sheet::parse("a\n\"b\nc").unwrap_err(), unclosed);
        let sheet = Sheet::parse("a\nNaN\n").unwrap();
        assert!(matches!(
            sheet.number(0, 0),
            Err(CsvError::NotANumber { line: 2, .. })
        ));
    }
}
