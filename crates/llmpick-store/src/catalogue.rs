//! The models we know: the built-in cards and the user's own.

use std::collections::BTreeMap;
use std::path::Path;

use crate::{CatalogueError, ModelCard, UnknownModel};

/// The models of a named pool: `default` is what the first use fetches, `starter` all five.
pub fn pool(name: &str) -> Option<&'static [&'static str]> {
    match name {
        "default" => Some(&DEFAULT_POOL),
        "starter" => Some(&STARTER_POOL),
        _ => None,
    }
}

const DEFAULT_POOL: [&str; 2] = ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"];
const STARTER_POOL: [&str; 5] = [
    "smollm2-135m-instruct",
    "gemma-3-270m",
    "qwen2.5-coder-0.5b-instruct",
    "qwen2.5-coder-1.5b-instruct",
    "all-minilm-l6-v2",
];

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../models/", $name, ".toml")))),*]
    };
}

/// Every file of `models/`; a test compares the two.
const EMBEDDED: &[(&str, &str)] = embedded![
    "all-minilm-l6-v2",
    "gemma-3-270m",
    "qwen2.5-coder-0.5b-instruct",
    "qwen2.5-coder-1.5b-instruct",
    "smollm2-135m-instruct",
];

/// Cards by name.
#[derive(Debug)]
pub(crate) struct Catalogue {
    cards: BTreeMap<String, ModelCard>,
}

impl Catalogue {
    /// The built-in cards, then those of `extra`, which win where names are equal.
    pub(crate) fn load(extra: Option<&Path>) -> Result<Self, CatalogueError> {
        let mut cards = BTreeMap::new();
        for (name, text) in EMBEDDED {
            let card = ModelCard::from_toml(text, Path::new(&format!("{name}.toml")))?;
            cards.insert(card.name.clone(), card);
        }
        if let Some(dir) = extra {
            for card in read_dir(dir)? {
                cards.insert(card.name.clone(), card);
            }
        }
        Ok(Self { cards })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ModelCard> {
        self.cards.values()
    }

    pub(crate) fn find(&self, name: &str) -> Option<&ModelCard> {
        self.cards.get(name)
    }

    pub(crate) fn card(&self, name: &str) -> Result<&ModelCard, UnknownModel> {
        self.find(name).ok_or_else(|| UnknownModel {
            name: name.into(),
            suggestion: self.nearest(name),
        })
    }

    /// A name that is nearly this one, or that begins with it.
    fn nearest(&self, name: &str) -> Option<String> {
        let name = name.to_lowercase();
        let begins = |known: &&String| name.len() >= 3 && known.starts_with(&name);
        let near = |known: &String| (strsim::jaro_winkler(&name, known), known.clone());
        self.cards.keys().find(begins).cloned().or_else(|| {
            self.cards
                .keys()
                .map(near)
                .filter(|(likeness, _)| *likeness > 0.8)
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, known)| known)
        })
    }
}

/// The cards of a folder, which need not exist.
fn read_dir(dir: &Path) -> Result<Vec<ModelCard>, CatalogueError> {
    let fail = |path: &Path, error: std::io::Error| CatalogueError {
        origin: path.display().to_string(),
        reason: error.to_string(),
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(dir, error)),
    };
    let mut cards = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| fail(dir, error))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            let text = std::fs::read_to_string(&path).map_err(|error| fail(&path, error))?;
            cards.push(ModelCard::from_toml(&text, &path)?);
        }
    }
    Ok(cards)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_card_of_the_models_folder_is_built_in() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let mut on_disk: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        on_disk.sort();
        let built_in: Vec<String> = EMBEDDED.iter().map(|(n, _)| format!("{n}.toml")).collect();
        assert_eq!(on_disk, built_in);
    }

    #[test]
    fn the_built_in_cards_are_right_and_hold_the_pools() {
        let catalogue = Catalogue::load(None).unwrap();
        for name in ["default", "starter"].iter().flat_map(|p| pool(p).unwrap()) {
            assert!(catalogue.find(name).is_some(), "{name}");
        }
        assert_eq!(catalogue.iter().count(), 5);
        assert_eq!(pool("nope"), None);
    }

    #[test]
    fn an_unknown_name_suggests_a_near_one() {
        let catalogue = Catalogue::load(None).unwrap();
        for (name, near) in [
            ("smollm2-135m-instuct", Some("smollm2-135m-instruct")),
            ("gemma", Some("gemma-3-270m")),
            ("Gemma-3-270M", Some("gemma-3-270m")),
            ("zzz", None),
        ] {
            let error = catalogue.card(name).unwrap_err();
            assert_eq!(error.suggestion.as_deref(), near, "{name}");
        }
    }

    #[test]
    fn a_users_own_card_joins_and_wins() {
        let dir = tempfile::tempdir().unwrap();
        let text = EMBEDDED
            .iter()
            .find(|(n, _)| *n == "gemma-3-270m")
            .unwrap()
            .1;
        std::fs::write(
            dir.path().join("gemma-3-270m.toml"),
            text.replace("Gemma 3 270M, the base", "My"),
        )
        .unwrap();
        std::fs::write(
            dir.path().join("mine.toml"),
            text.replace("\"gemma-3-270m\"", "\"mine\""),
        )
        .unwrap();
        let catalogue = Catalogue::load(Some(dir.path())).unwrap();
        assert_eq!(catalogue.iter().count(), 6);
        assert!(
            catalogue
                .find("gemma-3-270m")
                .unwrap()
                .description
                .starts_with("My model")
        );
        assert!(Catalogue::load(Some(&dir.path().join("none"))).is_ok());
    }
}
