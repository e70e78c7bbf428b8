//! `llmpick tokenize`: a text as a model sees it.

use clap::Args;
use serde_json::json;

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::Printer;
use crate::text;

/// Options of `tokenize`.
#[derive(Args, Debug)]
pub struct TokenizeArgs {
    /// The model, a .gguf file, or a model's folder
    #[arg(short, long)]
    model: String,
    /// The text; without it, stdin is read
    text: Option<String>,
    /// Put the model's begin token first, where it has one
    #[arg(long)]
    bos: bool,
    /// Read control tokens such as <|im_end|> in the text as tokens
    #[arg(long)]
    special: bool,
    /// Turn ids (numbers in the text) back into text
    #[arg(long, conflicts_with_all = ["bos", "special"])]
    decode: bool,
}

/// Prints ids and pieces.
pub fn run(args: TokenizeArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let path = open::model_path(&settings, &args.model)?;
    let tokenizer = llmpick_daemon::engine::read_tokenizer(&path)
        .map_err(|error| CliError::new(ExitCode::ModelFile, chain(&error)))?;
    let given = match args.text {
        Some(text) => text,
        None => text::read_stdin()?,
    };
    if args.decode {
        let ids = parse_ids(&given)?;
        let text = tokenizer.decode(&ids);
        return match printer.is_json() {
            true => printer.json_line(&json!({"text": text})),
            false => printer.write(&text),
        };
    }
    let options = llmpick_daemon::engine::tokens::Encode {
        add_bos: args.bos,
        parse_special: args.special,
    };
    let ids = tokenizer
        .encode(&given, options)
        .map_err(|error| CliError::new(ExitCode::Failed, chain(&error)))?;
    let tokens: Vec<String> = ids
        .iter()
        .map(|id| tokenizer.piece(*id).unwrap_or_default())
        .collect();
    printer.value(&json!({"ids": ids, "tokens": tokens}), || {
        let lines = ids
            .iter()
            .zip(&tokens)
            .map(|(id, token)| format!("{id:>8}  {token:?}"));
        lines.collect::<Vec<_>>().join("\n")
    })
}

fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let words = text
        .split(|c: char| !c.is_alphanumeric() && c != '-')
        .filter(|word| !word.is_empty());
    words
        .map(|word| {
            word.parse()
                .map_err(|_| CliError::new(ExitCode::Usage, format!("`{word}` is no token id")))
        })
        .collect()
}
