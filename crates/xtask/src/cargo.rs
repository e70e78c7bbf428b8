//! Starting cargo and other programs, and where cargo puts things.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root.
pub fn root() -> PathBuf {
    // What cargo says now, not what it said when this was compiled: clones may share a target
    // folder, and the other one may be gone.
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    // crates/xtask lies two folders below it.
    here.ancestors()
        .nth(2)
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A cargo command in the root, with the cargo that started us.
pub fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(arguments);
    command
}

/// Runs to the end; an error names the command.
pub fn must(mut command: Command) -> Result<(), String> {
    let status = command
        .status()
        .map_err(|error| format!("start {:?}: {error}", command.get_program()))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{command:?} ended with {status}"))
    }
}

/// What `cargo metadata` says of the workspace's own packages.
pub fn metadata() -> Result<serde_json::Value, String> {
    let output = cargo(["metadata", "--format-version=1", "--no-deps"])
        .output()
        .map_err(|error| format!("start cargo metadata: {error}"))?;
    serde_json::from_slice(&output.stdout).map_err(|error| format!("read cargo metadata: {error}"))
}

/// Where release builds land.
pub fn release_dir() -> Result<PathBuf, String> {
    metadata()?
        .get("target_directory")
        .and_then(|dir| dir.as_str())
        .map(|dir| Path::new(dir).join("release"))
        .ok_or_else(|| "cargo metadata names no target_directory".to_owned())
}

/// The packages of the workspace, as `cargo metadata` gives them.
pub fn packages() -> Result<Vec<serde_json::Value>, String> {
    match metadata()?.get_mut("packages").map(serde_json::Value::take) {
        Some(serde_json::Value::Array(packages)) => Ok(packages),
        _ => Err("cargo metadata lists no packages".to_owned()),
    }
}
