//! Builds the command and its plugins, and puts the plugins where the command looks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo::{cargo, must, packages, release_dir};

/// Builds what is stale and runs the command; its exit code is ours.
pub fn run(arguments: &[String]) -> Result<u8, String> {
    stage()?;
    let mut command = Command::new(release_dir()?.join("llmpick"));
    command.args(arguments);
    let status = command
        .status()
        .map_err(|error| format!("start llmpick: {error}"))?;
    Ok(status.code().map_or(1, |code| code as u8))
}

/// Builds the command and every plugin, and stages the plugins in `plugins/` beside it.
pub fn stage() -> Result<Vec<PathBuf>, String> {
    let names = plugin_packages()?;
    let mut build = vec!["build", "--release", "--package", "llmpick"];
    for name in &names {
        build.extend(["--package", name.as_str()]);
    }
    must(cargo(build))?;
    stage_into(&release_dir()?)
}

/// Stages what was built in `release`, in `plugins/` beside the command there.
pub fn stage_into(release: &Path) -> Result<Vec<PathBuf>, String> {
    let names = plugin_packages()?;
    let staged = release.join("plugins");
    fs::create_dir_all(&staged).map_err(|error| format!("create {}: {error}", staged.display()))?;
    names
        .iter()
        .map(|name| stage_one(release, &staged, name))
        .collect()
}

/// Every package under `plugins/`.
pub fn plugin_packages() -> Result<Vec<String>, String> {
    let in_plugins = |package: &serde_json::Value| {
        let manifest = Path::new(package["manifest_path"].as_str()?);
        let folder = manifest.parent()?.parent()?;
        (folder.file_name()? == "plugins").then(|| package["name"].as_str().map(str::to_owned))?
    };
    Ok(packages()?.iter().filter_map(in_plugins).collect())
}

/// Copies one library beside its old self and renames it over: a running process keeps the
/// old file mapped, and overwriting that would kill it.
fn stage_one(release: &Path, staged: &Path, package: &str) -> Result<PathBuf, String> {
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let file = format!("{prefix}{}{suffix}", package.replace('-', "_"));
    let (from, to) = (release.join(&file), staged.join(&file));
    let bytes = fs::read(&from).map_err(|error| format!("read {}: {error}", from.display()))?;
    if fs::read(&to).is_ok_and(|present| present == bytes) {
        return Ok(to);
    }
    let fresh = staged.join(format!(".{file}.{}", std::process::id()));
    fs::write(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, &to))
        .and_then(|()| mark_as_new(&release.join("llmpick")))
        .map_err(|error| format!("stage {}: {error}", to.display()))?;
    Ok(to)
}

/// The command refuses a plugin beside it that changed while the command did not. The two are
/// one build here, whichever of them was compiled.
fn mark_as_new(program: &Path) -> std::io::Result<()> {
    fs::File::open(program)?.set_modified(std::time::SystemTime::now())
}
