//! Where a plugin's file is. Looks at names only: nothing is loaded here.

use camino::{Utf8Path, Utf8PathBuf};

use crate::FindError;

/// The file of plugin `name`: the first that exists of `librouter_NAME.so`,
/// `libscorer_NAME.so`, `libNAME.so` and `NAME.so`, folder by folder (`-` in the name is
/// `_` in a file that Cargo made). A `name` with a `/` or ending in `.so` is a path.
pub fn find(paths: &[Utf8PathBuf], name: &str) -> Result<Utf8PathBuf, FindError> {
    let wanted: Vec<Utf8PathBuf> = if name.contains('/') || name.ends_with(".so") {
        vec![name.into()]
    } else {
        let in_folder = |folder: &Utf8PathBuf| file_names(name).map(|file| folder.join(file));
        paths.iter().flat_map(in_folder).collect()
    };
    let missing = |wanted: &[Utf8PathBuf]| FindError {
        name: name.to_owned(),
        looked: wanted.iter().map(Utf8PathBuf::to_string).collect(),
        found: list(paths).iter().map(|path| plugin_name(path)).collect(),
    };
    wanted
        .iter()
        .find(|path| path.is_file())
        .cloned()
        .ok_or_else(|| missing(&wanted))
}

/// Every shared library in these folders, by name. Loads none of them.
pub fn list(paths: &[Utf8PathBuf]) -> Vec<Utf8PathBuf> {
    let in_folder = |folder: &Utf8PathBuf| {
        let mut files: Vec<Utf8PathBuf> = folder
            .read_dir_utf8()
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.into_path()))
            .filter(|path| path.extension() == Some("so") && path.is_file())
            .collect();
        files.sort();
        files
    };
    paths.iter().flat_map(in_folder).collect()
}

fn file_names(name: &str) -> [String; 4] {
    let crate_name = name.replace('-', "_");
    [
        format!("librouter_{crate_name}.so"),
        format!("libscorer_{crate_name}.so"),
        format!("lib{crate_name}.so"),
        format!("{name}.so"),
    ]
}

/// What [`find`] would be asked for to find this file.
fn plugin_name(path: &Utf8Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    let Some(stem) = stem.strip_prefix("lib") else {
        return stem.to_owned();
    };
    let short = ["router_", "scorer_"]
        .into_iter()
        .find_map(|prefix| stem.strip_prefix(prefix));
    short.unwrap_or(stem).replace('_', "-")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says where it failed")]
    use super::*;

    #[test]
    fn a_name_leads_to_the_first_file_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(dir.path().to_owned()).unwrap();
        let paths = [folder.join("nowhere"), folder.clone()];
        let error = find(&paths, "best-of").unwrap_err();
        assert_eq!(error.looked.len(), 8);
        assert!(
            error.to_string().contains("there are no plugins"),
            "{error}"
        );
        for file in ["librouter_best_of.so", "best-of.so", "readme.txt"] {
            std::fs::write(folder.join(file), "").unwrap();
        }
        assert_eq!(
            find(&paths, "best-of").unwrap(),
            folder.join("librouter_best_of.so")
        );
        let path = folder.join("best-of.so");
        assert_eq!(find(&[], path.as_str()).unwrap(), path);
        assert_eq!(list(&paths).len(), 2, "a text file is no plugin");
        let error = find(&paths, "worst").unwrap_err();
        assert_eq!(error.found, ["best-of", "best-of"]);
    }
}
