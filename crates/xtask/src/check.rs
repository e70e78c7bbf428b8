//! What must hold before a push, cheapest first; the same list runs in CI.

use crate::cargo::{cargo, must};
use crate::tidy::tidy;

/// Formatting, layout, lints.
pub fn check() -> Result<u8, String> {
    must(cargo(["fmt", "--all", "--check"]))?;
    tidy()?;
    let lints = [
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    must(cargo(lints))?;
    Ok(0)
}
