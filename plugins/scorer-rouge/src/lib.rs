//! Scorer plugin `rouge`: how much of the reference's wording an answer has, and how little
//! else (ROUGE, Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries").
//!
//! The grade is the F-measure with equal weight on precision and recall, of words (ROUGE-1),
//! of pairs of neighbouring words (ROUGE-2), or of the longest common subsequence of words of
//! the whole text (ROUGE-L). Words are runs of letters and digits, lower-cased, not stemmed.
//! On English text that is what the Python package `rouge-score` does without its stemmer,
//! and the grades are the same; that package splits words at every letter outside a–z, this
//! one does not.
//!
//! It abstains where there is no reference, or one without words to compare, and where
//! ROUGE-L would take more than [`MOST_STEPS`] steps.

mod rouge;

use llmpick_plugin_sdk::{
    Error, Host, Outcome, Result, Score, ScoreRequest, ScorerPlugin, export_plugins,
};
use serde::Deserialize;

use rouge::{Counts, words};

/// Two texts of 10,000 words each: a tenth of a second.
const MOST_STEPS: usize = 100_000_000;

export_plugins!(scorer Rouge);

struct Rouge {
    variant: Variant,
    host: Host,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    variant: Variant,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Variant {
    #[serde(rename = "rouge1")]
    Rouge1,
    #[serde(rename = "rouge2")]
    Rouge2,
    #[default]
    #[serde(rename = "rougeL")]
    RougeL,
}

impl ScorerPlugin for Rouge {
    type Config = Config;
    const NAME: &'static str = "rouge";
    const DESCRIPTION: &'static str =
        "ROUGE-1, ROUGE-2 or ROUGE-L F-measure against the reference (Lin 2004)";
    const CONFIG_SCHEMA: &'static str = include_str!("config.schema.json");

    fn create(config: Config, host: Host) -> Result<Self> {
        let variant = config.variant;
        Ok(Self { variant, host })
    }

    fn score(&mut self, request: &ScoreRequest<'_>) -> Result<Score> {
        if request.outcome != Outcome::Ok {
            return Err(Error::abstain());
        }
        let (reference, response) = (words(request.reference), words(request.response));
        let counts = match self.variant {
            Variant::Rouge1 => Counts::of_ngrams(&reference, &response, 1),
            Variant::Rouge2 => Counts::of_ngrams(&reference, &response, 2),
            Variant::RougeL if reference.len().saturating_mul(response.len()) > MOST_STEPS => {
                self.host.warn(format_args!(
                    "{} and {} words are too many for rougeL; rouge1 and rouge2 take any number",
                    reference.len(),
                    response.len()
                ));
                return Err(Error::abstain());
            }
            Variant::RougeL => Counts::of_subsequence(&reference, &response),
        };
        counts
            .f_measure()
            .map_or_else(|| Err(Error::abstain()), Score::new)
    }
}
