//! Holds the workspace to the plan: which crate may know which, and where things lie.

use std::path::Path;

use crate::cargo::{packages, root};

/// Which of our crates each crate may use, outside tests. ARCHITECTURE.md explains the table.
const MAY_USE: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("bandit", &[]),
    ("plugin-abi", &[]),
    ("plugin-sdk", &["plugin-abi"]),
    ("plugin-host", &["core", "plugin-abi", "bandit"]),
    ("kernels", &[]),
    ("engine", &["core", "kernels"]),
    ("store", &["core"]),
    ("remote", &["core"]),
    ("score", &["core"]),
    ("ledger", &["core"]),
    ("dispatch", &["core", "ledger"]),
    (
        "daemon",
        &[
            "core",
            "store",
            "engine",
            "remote",
            "score",
            "ledger",
            "dispatch",
            "plugin-host",
        ],
    ),
    ("sim", &["core", "bandit", "plugin-host", "ledger"]),
    ("llmpick", &["core", "store", "daemon", "sim"]),
    ("testkit", &["core", "plugin-sdk", "plugin-host"]),
    ("xtask", &[]),
];

/// What a plugin may use: what any plugin author has, and the mathematics.
const PLUGIN_MAY_USE: &[&str] = &["bandit", "plugin-sdk"];

/// Nothing else lies at the top level.
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "crates",
    "plugins",
    "models",
    "tests",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "target",
];

/// Fails with every departure from the plan, not only the first.
pub fn tidy() -> Result<u8, String> {
    let mut faults = Vec::new();
    for package in packages()? {
        check_package(&package, &mut faults);
    }
    check_top_level(&mut faults)?;
    if faults.is_empty() {
        Ok(0)
    } else {
        Err(format!("tidy:\n  {}", faults.join("\n  ")))
    }
}

fn check_package(package: &serde_json::Value, faults: &mut Vec<String>) {
    let name = package["name"].as_str().unwrap_or_default();
    let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
    let folder = manifest
        .parent()
        .and_then(Path::file_name)
        .unwrap_or_default();
    let in_plugins = manifest
        .ancestors()
        .nth(2)
        .is_some_and(|dir| dir.ends_with("plugins"));
    let in_tests = folder == "tests";
    if !in_tests && folder != name {
        faults.push(format!("package {name} lies in a folder of another name"));
    }
    let short = name.strip_prefix("llmpick-").unwrap_or(name);
    let allowed = match MAY_USE.iter().find(|(crate_name, _)| *crate_name == short) {
        Some((_, allowed)) => allowed,
        None if in_plugins => PLUGIN_MAY_USE,
        None if in_tests => &[],
        None => return faults.push(format!("crate {name} is not in the plan")),
    };
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        let is_normal = dependency["kind"].is_null();
        let used = dependency["name"].as_str().unwrap_or_default();
        if let Some(used) = used.strip_prefix("llmpick-").filter(|_| is_normal)
            && !allowed.contains(&used)
        {
            faults.push(format!(
                "{short} uses {used}, which the plan does not allow"
            ));
        }
    }
}

fn check_top_level(faults: &mut Vec<String>) -> Result<(), String> {
    let entries = std::fs::read_dir(root()).map_err(|error| format!("list the root: {error}"))?;
    for name in entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
    {
        if !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()) {
            faults.push(format!("`{name}` has no place at the top level"));
        }
    }
    Ok(())
}
