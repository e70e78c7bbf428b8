//! What many models answered to the same queries, and what it cost: the world of a replay.

use std::collections::HashMap;

use camino::{Utf8Path, Utf8PathBuf};
use llmpick_core::ArmId;

use crate::csv::{CsvError, Sheet};
use crate::drive::Tokens;

/// A full table: every arm answered every query.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    arms: Vec<ArmId>,
    /// Row by row, one for each arm, in 0..=1.
    scores: Vec<f64>,
    /// Likewise, in dollars.
    costs: Vec<f64>,
    /// Likewise, in ms; `None` where nobody measured.
    latencies: Option<Vec<f64>>,
    tokens: Option<Lengths>,
    /// One for each row, empty where contexts are unknown.
    contexts: Vec<String>,
    /// Models that answered too few queries, with how many they answered.
    pub left_out_arms: Vec<(String, usize)>,
    /// Queries that one of the others did not answer.
    pub left_out_rows: usize,
    has_costs: bool,
}

/// What the recipe of costs knows of prompts and answers.
#[derive(Clone, Debug, PartialEq)]
struct Lengths {
    /// One for each arm.
    prices: Vec<TokenPrice>,
    /// Tokens of each row's prompt.
    prompts: Vec<f64>,
    /// Tokens of each answer, row by row.
    answers: Vec<f64>,
    /// Tokens of each arm's longest answer.
    longest: Vec<f64>,
}

/// What an arm charges, in dollars per 10⁶ tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenPrice {
    /// For the prompt.
    pub input: f64,
    /// For the answer.
    pub output: f64,
}

impl TokenPrice {
    /// Dollars for so many tokens.
    pub fn of(&self, prompt: f64, answer: f64) -> f64 {
        (prompt * self.input + answer * self.output) / 1e6
    }
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
    /// How long each answer took, in ms: a table shaped like the scores'.
    pub latencies: Option<Utf8PathBuf>,
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

impl TableFiles {
    /// The files that lie around `path`, which is the table of scores, or a folder with
    /// `correct.csv` or `scores.csv`. Costs come from `costs.csv` in such a folder, or by the
    /// recipe of MMLU-Pro where its three files lie beside the scores; contexts from
    /// `contexts.csv` and latencies from `latencies.csv` in such a folder.
    pub fn around(path: &Utf8Path) -> Self {
        let inside = |name: &str| Some(path.join(name)).filter(|path| path.is_file());
        let scores = match path.is_dir() {
            true => inside("correct.csv").unwrap_or_else(|| path.join("scores.csv")),
            false => path.to_owned(),
        };
        let recipe = RECIPE.iter().all(|name| beside(&scores, name).is_file());
        let costs = match inside("costs.csv") {
            Some(costs) => Costs::File(costs),
            None if recipe => Costs::MmluPro,
            None => Costs::Unknown,
        };
        Self {
            scores,
            costs,
            latencies: inside("latencies.csv"),
            contexts: inside("contexts.csv"),
            min_answered: 0.99,
        }
    }
}

/// What the recipe of MMLU-Pro needs beside the scores.
const RECIPE: [&str; 3] = ["output_chars.csv", "questions_meta.csv", "models.csv"];

impl Table {
    /// Reads, joins by query id, and leaves out what is incomplete.
    pub fn read(files: &TableFiles) -> Result<Self, TableError> {
        let scores = File::open(&files.scores)?;
        let costs = CostBook::open(&files.scores, &files.costs)?;
        let latencies = files.latencies.as_deref().map(File::open).transpose()?;
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
            scores: Vec::new(),
            costs: Vec::new(),
            latencies: latencies.is_some().then(Vec::new),
            tokens: costs.lengths(&columns.arms)?,
            contexts: Vec::new(),
            arms: columns.arms,
            left_out_arms: columns.left_out,
            left_out_rows: 0,
            has_costs: files.costs != Costs::Unknown,
        };
        for row in 0..scores.sheet.rows() {
            let query = scores.id(row);
            let context = match &contexts {
                Some(file) => file.of_query(query).map(|found| file.sheet.text(found, 1)),
                None => Some(""),
            };
            let mut cells = Vec::with_capacity(columns.places.len());
            for &column in &columns.places {
                let model = scores.name(column);
                let latency = match &latencies {
                    Some(file) => file.amount_of(query, model)?,
                    None => Some(f64::NAN),
                };
                let known = scores.score(row, column)?.zip(costs.cost(query, model)?);
                match known.zip(latency) {
                    Some(cell) => cells.push(cell),
                    None => break,
                }
            }
            match context.filter(|_| cells.len() == columns.places.len()) {
                Some(context) => table.push(context, &cells),
                None => table.left_out_rows += 1,
            }
        }
        if table.contexts.is_empty() {
            return Err(scores.invalid("no query was answered, with a known cost, by every model"));
        }
        Ok(table)
    }

    fn push(&mut self, context: &str, cells: &[((f64, Charge), f64)]) {
        self.contexts.push(context.to_owned());
        self.scores
            .extend(cells.iter().map(|((score, _), _)| score));
        self.costs
            .extend(cells.iter().map(|((_, charge), _)| charge.cost));
        if let Some(latencies) = &mut self.latencies {
            latencies.extend(cells.iter().map(|(_, latency)| latency));
        }
        if let Some(tokens) = &mut self.tokens {
            let prompt = cells.first().map_or(0.0, |((_, charge), _)| charge.prompt);
            tokens.prompts.push(prompt);
            for (((_, charge), _), longest) in cells.iter().zip(&mut tokens.longest) {
                tokens.answers.push(charge.answer);
                *longest = longest.max(charge.answer);
            }
        }
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

    /// True where models have prices per token.
    pub fn has_prices(&self) -> bool {
        self.tokens.is_some()
    }

    /// True where latencies are known.
    pub fn has_latencies(&self) -> bool {
        self.latencies.is_some()
    }

    /// The prices of an arm.
    pub(crate) fn price(&self, arm: usize) -> Option<TokenPrice> {
        self.tokens.as_ref()?.prices.get(arm).copied()
    }

    /// One query's latency on each arm, in ms.
    pub(crate) fn latencies(&self, row: usize) -> Option<&[f64]> {
        self.latencies.as_ref()?.get(self.cells(row))
    }

    /// One query's tokens.
    pub(crate) fn tokens(&self, row: usize) -> Option<Tokens<'_>> {
        let lengths = self.tokens.as_ref()?;
        Some(Tokens {
            prompt: *lengths.prompts.get(row)?,
            answers: lengths.answers.get(self.cells(row))?,
            longest: &lengths.longest,
        })
    }

    fn cells(&self, row: usize) -> std::ops::Range<usize> {
        let k = self.arms.len();
        row * k..(row + 1) * k
    }

    /// One query: its context, and the score and the cost of each arm. Nothing beyond the end.
    pub fn row(&self, row: usize) -> (&str, &[f64], &[f64]) {
        let cells = self.cells(row);
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

    /// An amount by query and column; `None` where there is none. No such column is an error.
    fn amount_of(&self, query: &str, column: &str) -> Result<Option<f64>, TableError> {
        let column = self.column(column)?;
        match self.of_query(query) {
            Some(row) => self.amount(row, column),
            None => Ok(None),
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

/// What one answer costs, and how long it and its prompt are; NaN where unknown.
struct Charge {
    /// Dollars.
    cost: f64,
    /// Tokens.
    prompt: f64,
    answer: f64,
}

impl Charge {
    fn plain(cost: f64) -> Self {
        Self {
            cost,
            prompt: f64::NAN,
            answer: f64::NAN,
        }
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
        prices: HashMap<String, TokenPrice>,
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

    /// `None` where it is not known. A model without any costs is an error.
    fn cost(&self, query: &str, model: &str) -> Result<Option<Charge>, TableError> {
        match self {
            CostBook::Free => Ok(Some(Charge::plain(0.0))),
            CostBook::Table(file) => Ok(file.amount_of(query, model)?.map(Charge::plain)),
            CostBook::MmluPro {
                output,
                meta,
                prompt_chars,
                ..
            } => {
                let price = self.price(model)?;
                let read = match meta.of_query(query) {
                    Some(question) => meta.amount(question, *prompt_chars)?,
                    None => None,
                };
                let written = output.amount_of(query, model)?;
                Ok(read.zip(written).map(|(read, written)| {
                    // Four characters are one token.
                    let (prompt, answer) = (read / 4.0, written / 4.0);
                    Charge {
                        cost: price.of(prompt, answer),
                        prompt,
                        answer,
                    }
                }))
            }
        }
    }

    fn price(&self, model: &str) -> Result<TokenPrice, TableError> {
        match self {
            CostBook::MmluPro { output, prices, .. } => {
                prices.get(model).copied().ok_or_else(|| {
                    output.invalid(format!("`models.csv` beside it has no prices of `{model}`"))
                })
            }
            CostBook::Free | CostBook::Table(_) => Ok(TokenPrice {
                input: f64::NAN,
                output: f64::NAN,
            }),
        }
    }

    /// Prices and room for lengths, where the recipe knows them.
    fn lengths(&self, arms: &[ArmId]) -> Result<Option<Lengths>, TableError> {
        let CostBook::MmluPro { .. } = self else {
            return Ok(None);
        };
        let prices = arms.iter().map(|arm| self.price(arm.as_str()));
        Ok(Some(Lengths {
            prices: prices.collect::<Result<_, _>>()?,
            prompts: Vec::new(),
            answers: Vec::new(),
            longest: vec![0.0; arms.len()],
        }))
    }
}

fn prices(models: &File) -> Result<HashMap<String, TokenPrice>, TableError> {
    let (input, output) = (
        models.column("usd_per_m_in")?,
        models.column("usd_per_m_out")?,
    );
    let mut prices = HashMap::new();
    for row in 0..models.sheet.rows() {
        if let Some((input, output)) = models.amount(row, input)?.zip(models.amount(row, output)?) {
            prices.insert(models.id(row).to_owned(), TokenPrice { input, output });
        }
    }
    Ok(prices)
}

fn beside(path: &Utf8Path, name: &str) -> Utf8PathBuf {
    path.with_file_name(name)
}
