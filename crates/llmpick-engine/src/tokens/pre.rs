//! How a byte-level vocabulary wants its text cut before it merges anything.
//!
//! The rule belongs to the model: cut differently, and tokens come out that it has never
//! seen. GGUF only names the rule (`tokenizer.ggml.pre`), so each name has its expressions
//! here, taken from the `tokenizer.json` of the models that bear it; a name that is not
//! here is an error. Several expressions are applied one after another, each to the
//! pieces that the one before left; what an expression does not match stays a piece.
//!
//! Contractions are matched in ASCII case only (`'s`, `'S`), as llama.cpp does.

use tokenizers::pattern::Pattern;
use tokenizers::utils::SysRegex;

use super::TokenizerError;
use super::metadata::Metadata;

/// A way to cut text.
pub(super) struct PreTokenizer {
    steps: Vec<Step>,
    adds_bos: bool,
    ignores_merges: bool,
}

/// One expression.
struct Step {
    expression: SysRegex,
    /// Every character is a part of some match, so an unmatched rest means that the
    /// regular expression engine gave up.
    covers: bool,
}

/// The rule of one or more names.
struct Rule {
    names: &'static [&'static str],
    expressions: &'static [&'static str],
    adds_bos: bool,
    /// A piece that is a token is that token, whatever the merges say.
    ignores_merges: bool,
}

pub(crate) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

const RULES: &[Rule] = &[
    Rule {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
        ],
        expressions: &[GPT2],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        expressions: &[r"\p{N}", GPT2],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "stablelm2",
            "hunyuan",
            "megrez",
            "grok-2",
            "solar-open",
        ],
        expressions: &[QWEN2],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        expressions: &[LLAMA3],
        adds_bos: true,
        ignores_merges: true,
    },
    Rule {
        names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"],
        expressions: &[LLAMA3],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        names: &["tekken"],
        expressions: &[TEKKEN],
        adds_bos: true,
        ignores_merges: true,
    },
    Rule {
        names: &["gpt-4o", "llama4", "minimax-m2"],
        expressions: &[GPT4O],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        names: &["deepseek-v3", "hunyuan-dense"],
        expressions: &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        names: &["deepseek-coder"],
        expressions: &[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            r"[一-龥ࠀ-一가-\x{D7FF}]+",
            r"\p{N}",
        ],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        names: &["falcon"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        names: &["bloom", "poro-chat", "gpt3-finnish"],
        expressions: &[BLOOM],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        names: &["viking"],
        expressions: &[BLOOM, r"\p{N}"],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        expressions: &[
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        names: &["seed-coder"],
        expressions: &[
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        adds_bos: false,
        ignores_merges: false,
    },
    Rule {
        // What llama.cpp does with a file that names no rule.
        names: &["default"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        adds_bos: false,
        ignores_merges: false,
    },
];

/// The name of the rule that has these expressions, as a `tokenizer.json` writes them.
pub(crate) fn rule_of(expressions: &[String]) -> Option<&'static str> {
    // There contractions are matched in any case; see above.
    let plain = |expression: &String| {
        let any_case = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
        let ascii = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
        expression.replace(any_case, ascii)
    };
    let expressions: Vec<String> = expressions.iter().map(plain).collect();
    let rule = RULES.iter().find(|rule| rule.expressions == expressions)?;
    rule.names.first().copied()
}

impl PreTokenizer {
    /// Reads `tokenizer.ggml.pre`.
    pub(super) fn read(metadata: &Metadata<'_>) -> Result<Self, TokenizerError> {
        let name = metadata.optional_string("tokenizer.ggml.pre")?;
        if name.is_none() {
            tracing::warn!(
                "file names no pre-tokenizer: `default` is used, and answers may be worse"
            );
        }
        let mut rule = Self::named(name.unwrap_or("default"))?;
        // A `tokenizer.json` says it itself.
        if let Some(ignores) = metadata.flag("tokenizer.llmpick.ignore_merges")? {
            rule.ignores_merges = ignores;
        }
        Ok(rule)
    }

    fn named(name: &str) -> Result<Self, TokenizerError> {
        let rule = RULES
            .iter()
            .find(|rule| rule.names.contains(&name))
            .ok_or_else(|| TokenizerError::UnknownPre(name.to_owned()))?;
        let steps = rule
            .expressions
            .iter()
            .map(|expression| {
                Ok(Step {
                    expression: SysRegex::new(expression).map_err(TokenizerError::Build)?,
                    // Those that know digits and white space know everything else too.
                    covers: expression.contains(r"\p{N}") && expression.ends_with(r"|\s+"),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            steps,
            adds_bos: rule.adds_bos,
            ignores_merges: rule.ignores_merges,
        })
    }

    /// True when models of this kind begin a prompt with BOS unless the file says otherwise.
    pub(super) fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// True when a piece that is a token needs no merging.
    pub(super) fn ignores_merges(&self) -> bool {
        self.ignores_merges
    }

    /// Cuts `text` and hands each piece, in order, to `take`.
    pub(super) fn split<'t>(
        &self,
        text: &'t str,
        take: &mut dyn FnMut(&'t str) -> Result<(), TokenizerError>,
    ) -> Result<(), TokenizerError> {
        self.split_from(0, text, take)
    }

    fn split_from<'t>(
        &self,
        level: usize,
        text: &'t str,
        take: &mut dyn FnMut(&'t str) -> Result<(), TokenizerError>,
    ) -> Result<(), TokenizerError> {
        let Some(step) = self.steps.get(level) else {
            return take(text);
        };
        let pieces = (&step.expression)
            .find_matches(text)
            .map_err(TokenizerError::Encode)?;
        for ((start, end), matched) in pieces {
            if start == end {
                continue;
            }
            if step.covers && !matched {
                return Err(TokenizerError::Split(start));
            }
            self.split_from(level + 1, &text[start..end], take)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(name: &str, text: &str, expected: &[&str]) {
        let mut pieces = Vec::new();
        PreTokenizer::named(name)
            .unwrap()
            .split(text, &mut |piece| {
                pieces.push(piece);
                Ok(())
            })
            .unwrap();
        assert_eq!(pieces, expected, "{name}");
    }

    #[test]
    fn every_rule_compiles_keeps_all_text_and_has_its_name_once() {
        let text = "It's 12345 o'clock,\t\r\n  don't!  漢字かな 가나 😀 e\u{301}\u{3000}x\u{a0}";
        let mut seen = std::collections::HashSet::new();
        for name in RULES.iter().flat_map(|rule| rule.names) {
            assert!(seen.insert(name), "{name} twice");
            let mut joined = String::new();
            PreTokenizer::named(name)
                .unwrap()
                .split(text, &mut |piece| {
                    joined.push_str(piece);
                    Ok(())
                })
                .unwrap();
            assert_eq!(joined, text, "{name}");
        }
    }

    #[test]
    fn digits_contractions_and_spaces_are_cut_as_each_family_wants() {
        check("gpt-2", "I've 123  x", &["I", "'ve", " 123", " ", " x"]);
        check("smollm", "a 123", &["a", " ", "1", "2", "3"]);
        check("qwen2", "a 12\n\n b", &["a", " ", "1", "2", "\n\n", " b"]);
        check("llama-bpe", "x 1234", &["x", " ", "123", "4"]);
        check("deepseek-coder", "x=12\n", &["x", "=", "1", "2", "\n"]);
    }

    #[test]
    fn an_unknown_rule_is_refused() {
        assert!(matches!(
            PreTokenizer::named("quen2"),
            Err(TokenizerError::UnknownPre(name)) if name == "quen2"
        ));
    }
}
