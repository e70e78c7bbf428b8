//! `llmpick feedback`: a person's word on an answer, learnt like any score.

use clap::Args;
use llmpick_core::{RouteId, Score};
use serde_json::json;

use crate::cli::Global;
use crate::error::Result;
use crate::printer::Printer;
use crate::talk::Talker;

/// Options of `feedback`.
#[derive(Args, Debug)]
pub struct FeedbackArgs {
    /// The route, as shown under the answer, for example r17
    route: RouteId,
    /// How good the answer was: 0 to 1
    #[arg(value_parser = score)]
    score: Score,
}

fn score(text: &str) -> Result<Score, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| "a score is a number from 0 to 1".to_owned())?;
    Score::new(number).map_err(|error| error.to_string())
}

/// Records it and lets the router learn.
pub async fn run(args: FeedbackArgs, global: &Global, printer: Printer) -> Result<()> {
    let talker = Talker::for_records(global).await?;
    talker.feedback(args.route, args.score).await?;
    printer.value(
        &json!({"route_id": args.route, "score": args.score}),
        || format!("{} has the score {}", args.route, args.score),
    )
}
