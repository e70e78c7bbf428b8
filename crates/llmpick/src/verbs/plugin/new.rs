//! `llmpick plugin new`: a project that builds and passes `plugin test` as it is written.
//!
//! The texts are those of `plugins/examples` and of the SDK, embedded when this was compiled:
//! example and template are one file. A Rust project gets a copy of the SDK, so that it
//! builds anywhere; `--sdk` names a checkout's instead.

use std::fs;

use camino::{Utf8Path, Utf8PathBuf};
use clap::{Args, ValueEnum};
use llmpick_daemon::plugin_host::is_plugin_name;
use serde_json::json;

use crate::error::{CliError, ExitCode, Result};
use crate::printer::Printer;

/// Options of `plugin new`.
#[derive(Args, Debug)]
pub(super) struct NewArgs {
    /// What the plugin is called: 1 to 64 of a-z, 0-9, _ and -
    name: String,
    /// The language to write it in
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    lang: Language,
    /// What it is to do: choose arms, or grade answers
    #[arg(long, value_enum, default_value_t = Kind::Router)]
    kind: Kind,
    /// The folder to make; without it, one of the plugin's name here
    #[arg(long, value_name = "DIR")]
    dir: Option<Utf8PathBuf>,
    /// Use the llmpick-plugin-sdk in this folder, such as CHECKOUT/crates/llmpick-plugin-sdk,
    /// instead of a copy in the project (Rust only)
    #[arg(long, value_name = "PATH")]
    sdk: Option<Utf8PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
    C,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Router,
    Scorer,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Router => "router",
            Kind::Scorer => "scorer",
        }
    }
}

macro_rules! embedded {
    ($($path:literal),* $(,)?) => {
        &[$((
            $path,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../", $path)),
        )),*]
    };
}

/// Files of this repository, by their path in it.
type Files = &'static [(&'static str, &'static str)];

const TEMPLATES: Files = embedded![
    "plugins/examples/rust-router/Cargo.toml",
    "plugins/examples/rust-router/src/lib.rs",
    "plugins/examples/rust-scorer/Cargo.toml",
    "plugins/examples/rust-scorer/src/lib.rs",
    "plugins/examples/c-router/Makefile",
    "plugins/examples/c-router/router.c",
    "plugins/examples/c-scorer/Makefile",
    "plugins/examples/c-scorer/scorer.c",
];

const HEADER: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../llmpick-plugin-abi/include/llmpick_plugin.h"
));

/// What a project needs to compile the SDK.
const SDK: Files = embedded![
    "crates/llmpick-plugin-abi/Cargo.toml",
    "crates/llmpick-plugin-abi/src/lib.rs",
    "crates/llmpick-plugin-sdk/Cargo.toml",
    "crates/llmpick-plugin-sdk/README.md",
    "crates/llmpick-plugin-sdk/src/choice.rs",
    "crates/llmpick-plugin-sdk/src/error.rs",
    "crates/llmpick-plugin-sdk/src/export.rs",
    "crates/llmpick-plugin-sdk/src/host.rs",
    "crates/llmpick-plugin-sdk/src/lib.rs",
    "crates/llmpick-plugin-sdk/src/request.rs",
    "crates/llmpick-plugin-sdk/src/router.rs",
    "crates/llmpick-plugin-sdk/src/scorer.rs",
];

/// Writes the project and says what to do next.
pub(super) fn run(args: NewArgs, printer: Printer) -> Result<()> {
    if !is_plugin_name(&args.name) {
        return Err(usage(format!(
            "`{}` cannot be a plugin's name: 1 to 64 of a-z, 0-9, _ and -, beginning with a \
             letter or digit",
            args.name
        )));
    }
    let folder = args.dir.clone().unwrap_or_else(|| args.name.clone().into());
    if folder.symlink_metadata().is_ok() {
        return Err(usage(format!("`{folder}` is there already"))
            .hint("choose another name, or another folder with --dir"));
    }
    let files = project(&args)?;
    for (path, text) in &files {
        write(&folder.join(path), text)?;
    }
    let (build, library) = build_of(&args);
    let value = json!({
        "path": folder, "files": files.iter().map(|(path, _)| path).collect::<Vec<_>>(),
        "build": build, "library": library,
    });
    printer.value(&value, || {
        let source = match args.lang {
            Language::Rust => "src/lib.rs".to_owned(),
            Language::C => format!("{}.c", args.kind.word()),
        };
        let use_it = match args.kind {
            Kind::Router => {
format!(
                "llmpick sim compare baselines:round-robin ./{library} --mode single --max-arms 1"
            )
            }
            Kind::Scorer => format!(
                "cp {library} ~/.local/share/llmpick/plugins/    # then name it in plugins.scorers"
            ),
        };
        format!(
            "{folder} holds a {} called {}; {source} is where it decides.\n\n  \
             cd {folder}\n  {build}\n  llmpick plugin test ./{library}\n  {use_it}",
            args.kind.word(),
            args.name
        )
    })
}

fn usage(message: String) -> CliError {
    CliError::new(ExitCode::Usage, message)
}

fn write(path: &Utf8Path, text: &str) -> Result<()> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(path, text))
        .map_err(|error| CliError::new(ExitCode::Failed, format!("write `{path}`: {error}")))
}

/// The command that builds the project, and the library it makes.
fn build_of(args: &NewArgs) -> (&'static str, String) {
    let file = format!("lib{}.so", package(args).replace('-', "_"));
    match args.lang {
        Language::Rust => ("cargo build --release", format!("target/release/{file}")),
        Language::C => ("make", file),
    }
}

/// `router-NAME`: its library is found by the plugin's name.
fn package(args: &NewArgs) -> String {
    format!("{}-{}", args.kind.word(), args.name)
}

/// The files of the project, by their path in it.
fn project(args: &NewArgs) -> Result<Vec<(String, String)>> {
    match args.lang {
        Language::Rust => rust_project(args),
        Language::C if args.sdk.is_some() => Err(usage(
            "--sdk is for Rust: a project in C needs the header only, and gets it".to_owned(),
        )),
        Language::C => Ok(c_project(args)),
    }
}

fn rust_project(args: &NewArgs) -> Result<Vec<(String, String)>> {
    let example = format!("plugins/examples/rust-{}", args.kind.word());
    let read = |file: &str| text_of(TEMPLATES, &format!("{example}/{file}"));
    let sdk = match &args.sdk {
        Some(path) => checkout_sdk(path)?.into_string(),
        None => "sdk/llmpick-plugin-sdk".to_owned(),
    };
    let manifest = swap(
        &swap(
            read("Cargo.toml"),
            &format!("{}-example", args.kind.word()),
            &package(args),
        ),
        "../../../crates/llmpick-plugin-sdk",
        &sdk,
    );
    let mut files = vec![
        ("Cargo.toml".to_owned(), manifest),
        (
            "src/lib.rs".to_owned(),
            swap(
                read("src/lib.rs"),
                "\"example\"",
                &format!("\"{}\"", args.name),
            ),
        ),
        (".gitignore".to_owned(), "target\n".to_owned()),
    ];
    if args.sdk.is_none() {
        files.extend(SDK.iter().map(|(path, text)| {
            let inside = path.strip_prefix("crates").unwrap_or(path);
            let text = match path.ends_with("Cargo.toml") {
                true => standalone(text),
                false => (*text).to_owned(),
            };
            (format!("sdk{inside}"), text)
        }));
    }
    Ok(files)
}

fn c_project(args: &NewArgs) -> Vec<(String, String)> {
    let kind = args.kind.word();
    let read = |file: &str| text_of(TEMPLATES, &format!("plugins/examples/c-{kind}/{file}"));
    let (_, library) = build_of(args);
    let source = format!("{kind}.c");
    let makefile = swap(
        read("Makefile"),
        "../../../crates/llmpick-plugin-abi/include",
        ".",
    );
    vec![
        (
            "Makefile".to_owned(),
            makefile.replace(&format!("lib{kind}_c_example.so"), &library),
        ),
        (
            source.clone(),
            swap(
                read(&source),
                "\"c-example\"",
                &format!("\"{}\"", args.name),
            ),
        ),
        ("llmpick_plugin.h".to_owned(), HEADER.to_owned()),
        (".gitignore".to_owned(), "*.so\n".to_owned()),
    ]
}

/// The SDK of a checkout, by its absolute path.
fn checkout_sdk(path: &Utf8Path) -> Result<Utf8PathBuf> {
    let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap_or_default();
    if !manifest.contains("name = \"llmpick-plugin-sdk\"") {
        return Err(
            usage(format!("`{path}` is not the folder of llmpick-plugin-sdk")).hint(
                "in a checkout it is crates/llmpick-plugin-sdk; without --sdk a copy is made",
            ),
        );
    }
    path.canonicalize_utf8()
        .map_err(|error| CliError::new(ExitCode::Failed, format!("resolve `{path}`: {error}")))
}

/// A manifest of the workspace as one that stands alone.
fn standalone(manifest: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in manifest.lines() {
        let alone = match line {
            "version.workspace = true" => concat!("version = \"", env!("CARGO_PKG_VERSION"), "\""),
            "edition.workspace = true" => "edition = \"2024\"",
            "rust-version.workspace = true" => {
                concat!("rust-version = \"", env!("CARGO_PKG_RUST_VERSION"), "\"")
            }
            "license.workspace = true" => "license = \"MIT OR Apache-2.0\"",
            "publish.workspace = true" => "publish = false",
            "llmpick-plugin-abi.workspace = true" => {
                "llmpick-plugin-abi = { path = \"../llmpick-plugin-abi\" }"
            }
            "serde.workspace = true" => "serde = { version = \"1\", features = [\"derive\"] }",
            "serde_json.workspace = true" => "serde_json = \"1\"",
            // Lints and tests stay at home.
            "[dev-dependencies]" | "[lints]" => break,
            line => line,
        };
        lines.push(alone.to_owned());
    }
    lines.join("\n").trim_end().to_owned() + "\n"
}

fn text_of(files: Files, path: &str) -> &'static str {
    let found = files.iter().find(|(known, _)| *known == path);
    found.map(|(_, text)| *text).unwrap_or_default()
}

/// The text with the one place where `old` stands changed.
fn swap(text: &str, old: &str, new: &str) -> String {
    text.replacen(old, new, 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn args(lang: Language, kind: Kind) -> NewArgs {
        NewArgs {
            name: "my-own_1".to_owned(),
            lang,
            kind,
            dir: None,
            sdk: None,
        }
    }

    fn repository() -> Utf8PathBuf {
        Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn the_whole_sdk_is_embedded() {
        for krate in ["abi", "sdk"] {
            let folder = format!("crates/llmpick-plugin-{krate}/src");
            for entry in repository().join(&folder).read_dir_utf8().unwrap() {
                let path = format!("{folder}/{}", entry.unwrap().file_name());
                assert!(!text_of(SDK, &path).is_empty(), "{path} is not embedded");
            }
        }
    }

    #[test]
    fn every_name_of_the_template_becomes_the_plugin_s() {
        for lang in [Language::Rust, Language::C] {
            for kind in [Kind::Router, Kind::Scorer] {
                let args = args(lang, kind);
                let files = project(&args).unwrap();
                let own = files.iter().filter(|(path, _)| !path.starts_with("sdk/"));
                let text: String = own
                    .filter(|(path, _)| path != "llmpick_plugin.h")
                    .map(|(_, text)| text.as_str())
                    .collect();
                assert!(text.contains("my-own_1"), "{text}");
                for left in ["example", "../..", "workspace = true"] {
                    assert!(!text.contains(left), "`{left}` is left in {text}");
                }
                assert!(files.iter().all(|(_, text)| !text.is_empty()), "{files:?}");
            }
        }
        let (_, library) = build_of(&args(Language::C, Kind::Scorer));
        assert_eq!(library, "libscorer_my_own_1.so");
    }

    #[test]
    fn manifests_stand_alone() {
        for (path, text) in SDK.iter().filter(|(path, _)| path.ends_with("Cargo.toml")) {
            let alone = standalone(text);
            assert!(!alone.contains("workspace"), "{path}: {alone}");
            assert!(alone.contains("edition = \"2024\""), "{alone}");
        }
    }
}
