//! What many models answered to the same queries, and what it cost: the world of a replay.

use std::collections::HashMap;

use camino::{Utf8Path, Utf8PathBuf};
use llmpick_core::ArmId;

use crate::csv::{CsvError, Sheet};

/// A full table: every arm answered every query.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    arms: Vec<ArmId>,
    /// Row by row, one for each arm, in 0..=1.
    scores: Vec<f64>,
    /// Likewise, in dollars.
    costs: Vec<f64>,
    /// One for each row, empty where contexts are unknown.
    contexts: Vec<String>,
    /// Models that answered too few queries, with how many they answered.
    pub left_out_arms: Vec<(String, usize)>,
    /// Queries that one of the others did not answer.
    pub left_out_rows: usize,
    has_costs: bool,
}

/// Where costs come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Costs {
    /// Nobody knows: every call is free, and no budget makes sense.
    Unknown,
    /// A table shaped like the scores', in dollars.
    File(Utf8PathBuf),
    /// `output_chars.csv`, `questions_meta.csv` and `models.csv` beside the scores:
    /// (prompt_chars/4·in + output_chars/4·out)/10⁶ dollars. Gives contexts as well.
    MmluPro,
}

/// The files of a table. Each has a header and the query's id in its first column.
#[derive(Clone, Debug, PartialEq)]
pub struct TableFiles {
    /// One column for each model, numbers in 0..=1, blank where it did not answer.
    pub scores: Utf8PathBuf,
    /// What the answers cost.
    pub costs: Costs,
    /// Each query's context in the second column.
    pub contexts: Option<Utf8PathBuf>,
    /// Models that answered less than this share of the queries are left out, rather than
    /// the queries they did not answer.
    pub min_answered: f64,
}

/// Why a table cannot be replayed.
#[derive(Debug, thiserror::Error)]
#[error("read the table `{path}`")]
pub struct TableError {
    /// The file.
    pub path: Utf8PathBuf,
    /// What was wrong.
    #[source]
    pub kind: TableErrorKind,
}

/// What was wrong with a table.
#[derive(Debug, thiserror::Error)]
pub enum TableErrorKind {
    /// The file system said no.
    #[error("it cannot be read: {0}")]
    Read(#[source] std::io::Error),
    /// No CSV of the right form.
    #[error(transparent)]
    Csv(#[from] CsvError),
    /// A number or a name that cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl Table {
    /// Reads, joins by query id, and leaves out what is incomplete.
    pub fn read(files: &TableFiles) -> Result<Self, TableError> {
        let scores = File::open(&files.scores)?;
        let cost_of = CostBook::open(&files.scores, &files.costs)?;
        let contexts = match (&files.contexts, &files.costs) {
            (Some(path), _) => Some(File::open(path)?),
            (None, Costs::MmluPro) => {
                Some(File::open(&beside(&files.scores, "questions_meta.csv"))?)
            }
            (None, _) => None,
        };
        let columns = scores.chosen_columns(files.min_answered)?;
        if columns.arms.is_empty() {
            return Err(scores.invalid("no model answered enough of the queries"));
        }
        let mut table = Self {
            arms: columns.arms,
            scores: Vec::new(),
            costs: Vec::new(),
            contexts: Vec::new(),
            left_out_arms: columns.left_out,
            left_out_rows: 0,
            has_costs: files.costs != Costs::Unknown,
        };
        for row in 0..scores.sheet.rows() {
            let (mut row_scores, mut row_costs) = (Vec::new(), Vec::new());
            for &column in &columns.places {
                let Some(score) = scores.score(row, column)? else {
                    break;
                };
                let Some(cost) = cost_of.cost(scores.id(row), scores.name(column))? else {
                    break;
                };
                row_scores.push(score);
                row_costs.push(cost);
            }
            let context = match &contexts {
                Some(file) => file
                    .of_query(scores.id(row))
                    .map(|found| file.sheet.text(found, 1)),
                None => Some(""),
            };
            match context.filter(|_| row_costs.len() == columns.places.len()) {
                Some(context) => {
                    table.scores.append(&mut row_scores);
                    table.costs.append(&mut row_costs);
                    table.contexts.push(context.to_owned());
                }
                None => table.left_out_rows += 1,
            }
        }
        if table.contexts.is_empty() {
            return Err(scores.invalid("no query was answered, with a known cost, by every model"));
        }
        Ok(table)
    }

    /// The models.
    pub fn arms(&self) -> &[ArmId] {
        &self.arms
    }

    /// How many queries.
    pub fn rows(&self) -> usize {
        self.contexts.len()
    }

    /// True where queries have contexts.
    pub fn has_contexts(&self) -> bool {
        self.contexts.iter().any(|context| !context.is_empty())
    }

    /// True where costs are known.
    pub fn has_costs(&self) -> bool {
        self.has_costs
    }

    /// One query: its context, and the score and the cost of each arm. Nothing beyond the end.
    pub fn row(&self, row: usize) -> (&str, &[f64], &[f64]) {
        let k = self.arms.len();
        let cells = row * k..(row + 1) * k;
        let slice = |cells: Option<_>| -> &[f64] { cells.unwrap_or_default() };
        (
            self.contexts.get(row).map_or("", String::as_str),
            slice(self.scores.get(cells.clone())),
            slice(self.costs.get(cells)),
        )
    }
}

/// A sheet and where it came from, with its rows by query id.
struct File {
    path: Utf8PathBuf,
    sheet: Sheet,
    rows: HashMap<String, usize>,
}

struct Columns {
    arms: Vec<ArmId>,
    places: Vec<usize>,
    left_out: Vec<(String, usize)>,
}

impl File {
    fn open(path: &Utf8Path) -> Result<Self, TableError> {
        let fail = |kind: TableErrorKind| TableError {
            path: path.to_owned(),
            kind,
        };
        let text =
            std::fs::read_to_string(path).map_err(|error| fail(TableErrorKind::Read(error)))?;
        let sheet = Sheet::parse(&text).map_err(|error| fail(error.into()))?;
        let mut rows = HashMap::with_capacity(sheet.rows());
        for row in 0..sheet.rows() {
            if rows.insert(sheet.text(row, 0).to_owned(), row).is_some() {
                let (line, id) = (sheet.line(row), sheet.text(row, 0));
                let text = format!("line {line}: `{id}` is there twice");
                return Err(fail(TableErrorKind::Invalid(text)));
            }
        }
        Ok(Self {
            path: path.to_owned(),
            sheet,
            rows,
        })
    }

    fn id(&self, row: usize) -> &str {
        self.sheet.text(row, 0)
    }

    fn name(&self, column: usize) -> &str {
        self.sheet.header().get(column).map_or("", String::as_str)
    }

    fn of_query(&self, id: &str) -> Option<usize> {
        self.rows.get(id).copied()
    }

    fn error(&self, kind: impl Into<TableErrorKind>) -> TableError {
        TableError {
            path: self.path.clone(),
            kind: kind.into(),
        }
    }

    fn invalid(&self, text: impl Into<String>) -> TableError {
        self.error(TableErrorKind::Invalid(text.into()))
    }

    fn column(&self, name: &str) -> Result<usize, TableError> {
        self.sheet.column(name).map_err(|error| self.error(error))
    }

    fn number(&self, row: usize, column: usize) -> Result<Option<f64>, TableError> {
        let number = self.sheet.optional(row, column);
        number.map_err(|error| self.error(error))
    }

    fn amount(&self, row: usize, column: usize) -> Result<Option<f64>, TableError> {
        match self.number(row, column)? {
            Some(amount) if amount < 0.0 => {
                let line = self.sheet.line(row);
                Err(self.invalid(format!("line {line}: {amount} is less than nothing")))
            }
            amount => Ok(amount),
        }
    }

    fn score(&self, row: usize, column: usize) -> Result<Option<f64>, TableError> {
        match self.number(row, column)? {
            Some(score) if !(0.0..=1.0).contains(&score) => {
                let line = self.sheet.line(row);
                Err(self.invalid(format!("line {line}: a score is from 0 to 1, not {score}")))
            }
            score => Ok(score),
        }
    }

    /// The models that answered enough.
    fn chosen_columns(&self, min_answered: f64) -> Result<Columns, TableError> {
        let rows = self.sheet.rows();
        let mut columns = Columns {
            arms: Vec::new(),
            places: Vec::new(),
            left_out: Vec::new(),
        };
        for (place, name) in self.sheet.header().iter().enumerate().skip(1) {
            let blank = |row: &usize| self.sheet.text(*row, place).trim().is_empty();
            let answered = rows - (0..rows).filter(blank).count();
            if (answered as f64) < min_answered * rows as f64 {
                columns.left_out.push((name.clone(), answered));
                continue;
            }
            let arm = ArmId::new(name).map_err(|error| self.invalid(error.to_string()))?;
            if columns.arms.contains(&arm) {
                return Err(self.invalid(format!("the model `{arm}` is there twice")));
            }
            columns.arms.push(arm);
            columns.places.push(place);
        }
        Ok(columns)
    }
}

/// What an answer costs.
enum CostBook {
    Free,
    Table(File),
    MmluPro {
        output: File,
        meta: File,
        prompt_chars: usize,
        /// Dollars per 10⁶ tokens in and out, by model.
        prices: HashMap<String, (f64, f64)>,
    },
}

impl CostBook {
    fn open(scores: &Utf8Path, costs: &Costs) -> Result<Self, TableError> {
        match costs {
            Costs::Unknown => Ok(CostBook::Free),
            Costs::File(path) => Ok(CostBook::Table(File::open(path)?)),
            Costs::MmluPro => {
                let meta = File::open(&beside(scores, "questions_meta.csv"))?;
                Ok(CostBook::MmluPro {
                    output: File::open(&beside(scores, "output_chars.csv"))?,
                    prompt_chars: meta.column("prompt_chars")?,
                    meta,
                    prices: prices(&File::open(&beside(scores, "models.csv"))?)?,
                })
            }
        }
    }

    /// Dollars; `None` where they are not known. A model without any costs is an error.
    fn cost(&self, query: &str, model: &str) -> Result<Option<f64>, TableError> {
        match self {
            CostBook::Free => Ok(Some(0.0)),
            CostBook::Table(file) => {
                let column = file.column(model)?;
                match file.of_query(query) {
                    Some(row) => file.amount(row, column),
                    None => Ok(None),
                }
            }
            CostBook::MmluPro {
                output,
                meta,
                prompt_chars,
                prices,
            } => {
                let column = output.column(model)?;
                let Some((input, out)) = prices.get(model) else {
                    let text = format!("`models.csv` beside it has no prices of `{model}`");
                    return Err(output.invalid(text));
                };
                let rows = output.of_query(query).zip(meta.of_query(query));
                let Some((answer, question)) = rows else {
                    return Ok(None);
                };
                let written = output.amount(answer, column)?;
                let read = meta.amount(question, *prompt_chars)?;
                let cost = |(read, written)| (read / 4.0 * input + written / 4.0 * out) / 1e6;
                Ok(read.zip(written).map(cost))
            }
        }
    }
}

fn prices(models: &File) -> Result<HashMap<String, (f64, f64)>, TableError> {
    let (input, output) = (
        models.column("usd_per_m_in")?,
        models.column("usd_per_m_out")?,
    );
    let mut prices = HashMap::new();
    for row in 0..models.sheet.rows() {
        if let Some(pair) = models.amount(row, input)?.zip(models.amount(row, output)?) {
            prices.insert(models.id(row).to_owned(), pair);
        }
    }
    Ok(prices)
}

fn beside(path: &Utf8Path, name: &str) -> Utf8PathBuf {
    path.with_file_name(name)
}
