//! One model of the catalogue: what it is, its digests, and where it comes from.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::CatalogueError;
use crate::names::natural_cmp;

/// What is known of a model before it is here; `models/NAME.toml` after its check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelCard {
    /// Its name, also the name of its arm.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// What it is for.
    pub kind: ModelKind,
    /// The architecture as GGUF names it, or `bert`.
    pub architecture: String,
    /// The formats of its weights.
    pub quantisation: String,
    /// How many weights the file holds.
    pub parameters: u64,
    /// Longest prompt and completion together, in tokens.
    pub context_tokens: u32,
    /// The licence of the weights.
    pub licence: String,
    /// Whether it was trained to follow instructions; a base model only continues text.
    pub instruct: bool,
    /// A note on the chat template.
    pub template: String,
    /// The weights.
    pub file: FileCard,
    /// What else belongs to them, for example a tokenizer.
    pub extra: Vec<FileCard>,
    /// Where it can be had, in the order to try.
    pub sources: Vec<Source>,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// It answers prompts.
    Generate,
    /// It turns text into a vector.
    Embed,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileCard {
    /// Its path under the model's folder, with forward slashes.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// The sha256 of its bytes, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// One place to get a model from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A file on this machine.
    File(LocalSource),
    /// The Hugging Face hub, or what speaks its protocol.
    Hub(HubSource),
    /// Python wheels, read as the zip files they are.
    Wheels(WheelsSource),
}

/// A file on this machine, with the card's digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalSource {
    /// An absolute path.
    pub path: String,
}

/// A file of a repository on the hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubSource {
    /// `OWNER/NAME`.
    pub repo: String,
    /// The weights' path in the repository; extra files have their own names.
    pub file: String,
    /// A branch, tag or commit.
    #[serde(default = "main_branch")]
    pub revision: String,
    /// The hub holds the very bytes of the card. Otherwise they are another build of the
    /// same weights, and the hub's own sha256 is what they must match.
    #[serde(default)]
    pub same_bytes: bool,
}

/// Wheels whose members, joined by number, are the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WheelsSource {
    /// Package names; kept in numeric order.
    pub packages: Vec<String>,
    /// The version of all of them.
    pub version: String,
    /// Which members: `*` is any text, `{file}` the name of each file of the card.
    pub member: String,
}

impl ModelCard {
    /// Reads and checks a card. `origin` is named in errors; its file stem must be the name.
    pub fn from_toml(text: &str, origin: &Path) -> Result<Self, CatalogueError> {
        let fail = |reason: String| CatalogueError {
            origin: origin.display().to_string(),
            reason,
        };
        let raw: RawCard = toml::from_str(text).map_err(|e| fail(e.to_string().trim().into()))?;
        raw.check(origin).map_err(fail)
    }

    /// Every file, the weights first.
    pub fn files(&self) -> impl Iterator<Item = &FileCard> {
        std::iter::once(&self.file).chain(&self.extra)
    }

    /// The length of all files together.
    pub fn bytes(&self) -> u64 {
        self.files().map(|file| file.bytes).sum()
    }
}

impl Source {
    /// The source in words, as events and errors name it.
    pub fn label(&self) -> String {
        match self {
            Source::File(local) => format!("file {}", local.path),
            Source::Hub(hub) => format!("hub {}", hub.repo),
            Source::Wheels(wheels) => match wheels.packages.as_slice() {
                [one] => format!("wheel {one} {}", wheels.version),
                many => format!(
                    "wheels {} {} ({} parts)",
                    many.first()
                        .map_or("", |first| first.trim_end_matches("-part1")),
                    wheels.version,
                    many.len()
                ),
            },
        }
    }
}

/// The format this program reads; raised when a key changes its meaning.
const FORMAT: u32 = 1;

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCard {
    format: u32,
    name: String,
    description: String,
    kind: ModelKind,
    architecture: String,
    quantisation: String,
    parameters: u64,
    context_tokens: u32,
    licence: String,
    instruct: bool,
    template: String,
    file: Option<String>,
    bytes: u64,
    sha256: String,
    #[serde(default)]
    extra: Vec<FileCard>,
    source: Vec<Source>,
}

impl RawCard {
    fn check(mut self, origin: &Path) -> Result<ModelCard, String> {
        if self.format != FORMAT {
            return Err(format!(
                "its format is {}, this program reads {FORMAT}",
                self.format
            ));
        }
        if !is_model_name(&self.name) {
            return Err(format!(
                "`{}` is not a model name (lower-case letters, digits, `.`, `-`, `_`)",
                self.name
            ));
        }
        if origin
            .file_stem()
            .is_some_and(|stem| stem != self.name.as_str())
        {
            return Err(format!("it names `{}`, unlike its file", self.name));
        }
        let file = FileCard {
            file: self.file.unwrap_or_else(|| format!("{}.gguf", self.name)),
            bytes: self.bytes,
            sha256: self.sha256,
        };
        for file in std::iter::once(&file).chain(&self.extra) {
            check_file(file, &self.name)?;
        }
        if self.source.is_empty() {
            return Err("it has no [[source]]".into());
        }
        for source in &mut self.source {
            check_source(source)?;
        }
        Ok(ModelCard {
            name: self.name,
            description: self.description,
            kind: self.kind,
            architecture: self.architecture,
            quantisation: self.quantisation,
            parameters: self.parameters,
            context_tokens: self.context_tokens,
            licence: self.licence,
            instruct: self.instruct,
            template: self.template,
            file,
            extra: self.extra,
            sources: self.source,
        })
    }
}

/// Names are folder names too: nothing that could leave the cache or hide in it.
pub(crate) fn is_model_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(allowed)
}

pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

fn check_file(file: &FileCard, name: &str) -> Result<(), String> {
    let safe = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('\\');
    if !file.file.split('/').all(safe) {
        return Err(format!("`{}` is not a path below the model", file.file));
    }
    let ours = [format!("{name}.json"), "download".into()];
    if ours
        .iter()
        .any(|own| file.file.split('/').next() == Some(own))
    {
        return Err(format!("`{}` is a name the cache uses itself", file.file));
    }
    if !is_sha256(&file.sha256) {
        return Err(format!(
            "the sha256 of `{}` is not 64 lower-case hexadecimal digits",
            file.file
        ));
    }
    Ok(())
}

fn check_source(source: &mut Source) -> Result<(), String> {
    match source {
        Source::File(local) if !Path::new(&local.path).is_absolute() => {
            Err(format!("`{}` is not an absolute path", local.path))
        }
        Source::File(_) => Ok(()),
        Source::Hub(hub) => {
            let plain = |part: &str| {
                !part.is_empty()
                    && !part.starts_with('.')
                    && part
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            };
            let fine = hub.repo.split('/').count() == 2
                && hub.repo.split('/').all(plain)
                && hub.file.split('/').all(plain)
                && hub.revision.split('/').all(plain);
            match fine {
                true => Ok(()),
                false => Err(format!("`{}` is not a file of the hub", hub.repo)),
            }
        }
        Source::Wheels(wheels) => {
            // What reaches pip's command line must not look like an option or a path.
            let plain = |text: &str| {
                text.starts_with(|c: char| c.is_ascii_alphanumeric())
                    && text
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "._-+!".contains(c))
            };
            if wheels.packages.is_empty() || !wheels.packages.iter().all(|name| plain(name)) {
                return Err("its wheels need package names".into());
            }
            if !plain(&wheels.version) {
                return Err(format!("`{}` is not a version", wheels.version));
            }
            wheels.packages.sort_by(|a, b| natural_cmp(a, b));
            Ok(())
        }
    }
}

fn main_branch() -> String {
    "main".into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const GOOD: &str = r#"
        format = 1
        name = "tiny"
        description = "d"
        kind = "generate"
        architecture = "llama"
        quantisation = "F32"
        parameters = 1
        context_tokens = 10
        licence = "MIT"
        instruct = true
        template = "none"
        bytes = 3
        sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        [[source]]
        kind = "wheels"
        packages = ["t-part10", "t-part9"]
        version = "1.0"
        member = "*/part*"
    "#;

    #[test]
    fn packages_are_kept_in_numeric_order() {
        let card = ModelCard::from_toml(GOOD, Path::new("tiny.toml")).unwrap();
        let Some(Source::Wheels(wheels)) = card.sources.first() else {
            panic!("no wheels in {card:?}");
        };
        assert_eq!(wheels.packages, ["t-part9", "t-part10"]);
        assert_eq!(card.file.file, "tiny.gguf");
    }

    #[test]
    fn a_wrong_card_is_refused_with_its_reason() {
        for (from, to, expected) in [
            (
                "format = 1",
                "format = 2",
                "its format is 2, this program reads 1",
            ),
            ("name = \"tiny\"", "name = \"../x\"", "is not a model name"),
            ("name = \"tiny\"", "name = \"other\"", "unlike its file"),
            ("licence", "license", "unknown field `license`"),
            ("bytes = 3", "bytes = -3", "invalid value"),
            ("ba7816", "BA7816", "is not 64 lower-case"),
            (
                "bytes = 3",
                "file = \"../../etc/x\"\nbytes = 3",
                "not a path below the model",
            ),
            (
                "bytes = 3",
                "file = \"tiny.json\"\nbytes = 3",
                "a name the cache uses itself",
            ),
            ("\"t-part9\"", "\"--index-url=x\"", "need package names"),
            (
                "version = \"1.0\"",
                "version = \"1 -r x\"",
                "is not a version",
            ),
            (
                "kind = \"wheels\"",
                "kind = \"ftp\"",
                "unknown variant `ftp`",
            ),
        ] {
            let text = GOOD.replace(from, to);
            let error = ModelCard::from_toml(&text, Path::new("tiny.toml")).unwrap_err();
            assert!(error.reason.contains(expected), "{to}: {}", error.reason);
        }
    }
}
