//! The kernels' tests for 64-bit ARM, on whatever machine this is, by emulation.
//!
//! Nothing else depends on this: it needs a compiler's target, a linker and an emulator
//! that most machines do not have, and says which one is missing.

use std::process::{Command, Stdio};

use crate::cargo::{cargo, must};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";
/// Where Debian's cross compiler keeps the C library.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";

/// Runs the tests whose name holds a filter, twice: on a processor with everything that
/// the emulator knows, then on one from before sums of four products.
pub fn arm(filters: &[String]) -> Result<u8, String> {
    let native = cfg!(all(target_arch = "aarch64", target_os = "linux"));
    if native {
        must(tests(filters))?;
        return Ok(0);
    }
    let missing: Vec<&str> = [
        (
            has_target(),
            "`rustup target add aarch64-unknown-linux-gnu`",
        ),
        (starts(LINKER), "gcc-aarch64-linux-gnu (Debian, Ubuntu)"),
        (starts(EMULATOR), "qemu-user (Debian, Ubuntu)"),
    ]
    .into_iter()
    .filter_map(|(there, what)| (!there).then_some(what))
    .collect();
    if !missing.is_empty() {
        return Err(format!("install what is missing: {}", missing.join(", ")));
    }
    for processor in ["max", "cortex-a57"] {
        eprintln!("xtask: as {processor}");
        let mut command = tests(filters);
        let name = TARGET.to_uppercase().replace('-', "_");
        command
            .env(format!("CARGO_TARGET_{name}_LINKER"), LINKER)
            .env(
                format!("CARGO_TARGET_{name}_RUNNER"),
                format!("{EMULATOR} -L {LIBRARIES}"),
            )
            .env("QEMU_CPU", processor);
        must(command)?;
    }
    Ok(0)
}

fn tests(filters: &[String]) -> Command {
    let mut command = cargo([
        "test",
        "--release",
        "--package=llmpick-kernels",
        // Not the long comparison of attention with its definition, a quarter of an hour
        // of emulation: the library's own tests hold its forms to the plain one.
        "--lib",
        "--test=matmul",
        "--target",
        TARGET,
        "--",
    ]);
    command.args(filters);
    command
}

/// Whether the compiler has a standard library for the target.
fn has_target() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--print=target-libdir", "--target", TARGET])
        .output();
    output.is_ok_and(|output| {
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success() && std::path::Path::new(&folder).is_dir()
    })
}

fn starts(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
