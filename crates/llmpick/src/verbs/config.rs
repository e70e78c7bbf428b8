//! `llmpick config`: what the settings are, and which layer said so.

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::Global;
use crate::error::Result;
use crate::open;
use crate::printer::{Printer, table};

/// Options of `config`.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Every setting with its value and origin
    Show,
    /// One setting: its value, where it came from, and how to change it
    Explain {
        /// The setting, for example router.plugin
        key: String,
    },
    /// The files that are read, lowest layer first
    Path,
    /// The commented reference of all settings, as it is built in
    Default,
}

/// Prints what was asked for.
pub fn run(args: ConfigArgs, global: &Global, printer: Printer) -> Result<()> {
    if let What::Default = args.what {
        return printer.write(llmpick_daemon::DEFAULT_CONFIG);
    }
    let settings = open::settings(global, Vec::new())?;
    match args.what {
        What::Show => {
            let all = settings.explain_all();
            let rows: Vec<[String; 3]> = all
                .into_iter()
                .map(|one| {
                    [
                        one.key,
                        one.value.unwrap_or_else(|| "–".into()),
                        one.origin.to_string(),
                    ]
                })
                .collect();
            let value: serde_json::Map<String, serde_json::Value> = rows
                .iter()
                .map(|[key, value, origin]| {
                    (key.clone(), json!({"value": value, "origin": origin}))
                })
                .collect();
            printer.value(&value, || {
                table(
                    &["setting", "value", "from"],
                    rows.iter().map(|row| row.to_vec()),
                )
            })
        }
        What::Explain { key } => {
            let one = settings
                .explain(&key)
                .map_err(|error| open::settings_error(&error))?;
            let value = one.value.clone().unwrap_or_else(|| "not set".into());
            let shown = json!({
                "key": one.key, "value": one.value, "origin": one.origin.to_string(), "variable": one.variable,
            });
            printer.value(&shown, || {
                format!(
                    "{key} = {value}\n  from {}\n  change it in llmpick.toml, with {}, or with --set {key}=…",
                    one.origin, one.variable
                )
            })
        }
        What::Path => {
            let files: Vec<_> = settings
                .files()
                .iter()
                .map(|file| (file.path.as_str(), file.read))
                .collect();
            let value: Vec<_> = files
                .iter()
                .map(|(path, read)| json!({"path": path, "read": read}))
                .collect();
            let line = |(path, read): &(&str, bool)| {
                format!("{path}{}", if *read { "" } else { "  (not there)" })
            };
            printer.value(&value, || {
                files.iter().map(line).collect::<Vec<_>>().join("\n")
            })
        }
        What::Default => Ok(()),
    }
}
