//! Builds the command with GPU support, on any x86-64 Linux, with or without a GPU.
//!
//! NVIDIA's compiler comes as Python packages into a folder of the user's cache. The
//! libraries that only a machine with a GPU has are not linked: empty ones of their names
//! satisfy the linker, which drops them, and the program opens the real ones when it runs.
//! So one binary starts everywhere and uses a GPU where there is one. Every step is left
//! out where its result is there already.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cargo::{cargo, must, release_dir};
use crate::plugins;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The compiler and its headers, for drivers of CUDA 13.0 and later: a newer compiler
/// writes code that older drivers do not read.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-nvvm==13.0.88",
];

/// Libraries that are opened when the program runs.
const OPENED: [&str; 5] = ["cuda", "cublas", "cublasLt", "curand", "nvrtc"];

/// Ahead of the architecture's own code goes the portable kind, for GPUs that are newer.
/// Only where an object is made: the step that writes portable code takes one architecture.
const WRAPPER: &str = r#"#!/bin/bash
extra=()
for a in "$@"; do [ "$a" = -c ] && extra=(-gencode=arch=compute_$CUDA_COMPUTE_CAP,code=compute_$CUDA_COMPUTE_CAP --compress-mode=size); done
exec "$(dirname "$0")/nvcc" "$@" "${extra[@]}"
"#;

/// Builds, then starts what was built.
pub fn cuda(arguments: &[String]) -> Result<u8, String> {
    if let Some(unknown) = arguments.first() {
        return Err(format!("`cuda` takes no argument `{unknown}`"));
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err("the GPU build is for x86-64 Linux".to_owned());
    }
    need("python3", &["-m", "pip", "--version"], "python3 with pip")?;
    need("gcc", &["--version"], "gcc")?;
    need("bash", &["--version"], "bash")?;
    let work = Work {
        folder: crate::test::cache_folder()
            .ok_or("neither XDG_CACHE_HOME nor HOME is set")?
            .join("cuda"),
    };
    work.fetch()?;
    work.prepare()?;
    let release = work.build()?;
    for file in plugins::stage_into(&release)? {
        eprintln!("staged {}", file.display());
    }
    let program = release.join("llmpick");
    describe(&program)?;
    try_out(&program)?;
    eprintln!("built {}", program.display());
    Ok(0)
}

fn need(program: &str, arguments: &[&str], name: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!("the GPU build needs {name}, and it is not here")),
    }
}

/// The folder with compiler and link libraries; hundreds of megabytes that can be made again.
struct Work {
    folder: PathBuf,
}

impl Work {
    fn toolkit(&self) -> PathBuf {
        self.folder.join("site/nvidia/cu13")
    }

    /// The compiler, through pip with the user's own settings.
    fn fetch(&self) -> Result<(), String> {
        if self.toolkit().join("bin/nvcc").is_file() {
            return Ok(());
        }
        eprintln!(
            "fetching NVIDIA's compiler into {} (105 MB, 271 MB unpacked)",
            self.folder.display()
        );
        // Renamed when it is whole, so that a download that broke off is begun again.
        let (part, site) = (self.folder.join("site.part"), self.folder.join("site"));
        for old in [&part, &site] {
            if old.exists() {
                fs::remove_dir_all(old).map_err(|error| at("remove", old, &error))?;
            }
        }
        fs::create_dir_all(&self.folder).map_err(|error| at("create", &self.folder, &error))?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]);
        must({
            pip.arg(&part).args(PACKAGES);
            pip
        })?;
        fs::rename(&part, &site).map_err(|error| at("rename", &part, &error))
    }

    /// Link libraries and the compiler's wrapper.
    fn prepare(&self) -> Result<(), String> {
        let libraries = self.folder.join("link/lib");
        fs::create_dir_all(&libraries).map_err(|error| at("create", &libraries, &error))?;
        for name in OPENED {
            let library = libraries.join(format!("lib{name}.so"));
            if !library.is_file() {
                let mut gcc = Command::new("gcc");
                gcc.args(["-shared", "-x", "c", "/dev/null", "-o"]);
                gcc.arg(&library);
                must(gcc)?;
            }
        }
        // `-lcudart` becomes the static library.
        let runtime = self.toolkit().join("lib/libcudart_static.a");
        let script = format!("INPUT({} -ldl -lrt -lpthread)\n", runtime.display());
        write_if_new(&libraries.join("libcudart.so"), &script)?;
        let wrapper = self.toolkit().join("bin/nvcc-fat");
        write_if_new(&wrapper, WRAPPER)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))
            .map_err(|error| at("make executable", &wrapper, &error))
    }

    /// The command and the plugins; gives the folder where they are.
    fn build(&self) -> Result<PathBuf, String> {
        let release = release_dir()?;
        let target = release.parent().unwrap_or(&release).join("cuda");
        let capability = capability();
        eprintln!(
            "building for compute capability {capability} in {} (minutes at first: 26 GPU kernels, then the command)",
            target.display()
        );
        let names = plugins::plugin_packages()?;
        let mut build = vec!["build", "--release", "--target", TARGET];
        build.extend(["--features", "llmpick/cuda", "--package", "llmpick"]);
        for name in &names {
            build.extend(["--package", name]);
        }
        let mut command = cargo(build);
        command.arg("--target-dir").arg(&target);
        command.env("NVCC", self.toolkit().join("bin/nvcc-fat"));
        command.env("CUDA_HOME", self.folder.join("link"));
        command.env("CUDA_COMPUTE_CAP", capability);
        command.env("CUDARC_CUDA_VERSION", "13000");
        command.env("CUDAFORGE_THREADS", threads().to_string());
        // Only with `--target` these do not reach build scripts, where cudarc's refuses it.
        command.env("RUSTFLAGS", "--cfg feature=\"dynamic-loading\"");
        must(command)?;
        Ok(target.join(TARGET).join("release"))
    }
}

/// What the kernels are compiled for: as asked, as the GPU here has it, or Hopper's.
fn capability() -> String {
    if let Ok(asked) = std::env::var("CUDA_COMPUTE_CAP") {
        return asked;
    }
    let mut smi = Command::new("nvidia-smi");
    smi.args(["--query-gpu=compute_cap", "--format=csv,noheader"]);
    let output = smi.stderr(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let first = text.unwrap_or_default();
    let first = first.lines().next().unwrap_or_default().replace('.', "");
    match first.trim().parse::<u32>() {
        Ok(number) => number.to_string(),
        Err(_) => "90".to_owned(),
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Strips the program, and says how large it is and which libraries it cannot start without.
fn describe(program: &Path) -> Result<(), String> {
    if need("strip", &["--version"], "strip").is_ok() {
        let mut strip = Command::new("strip");
        must({
            strip.arg(program);
            strip
        })?;
    }
    let size = fs::metadata(program).map_err(|error| at("read", program, &error))?;
    eprintln!("{:.1} MB", size.len() as f64 / 1e6);
    let output = Command::new("readelf").arg("-d").arg(program).output();
    let Ok(output) = output else { return Ok(()) };
    let text = String::from_utf8_lossy(&output.stdout);
    let needed: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split(['[', ']']).nth(1))
        .collect();
    eprintln!("needs {}", needed.join(", "));
    match needed.iter().find(|name| {
        OPENED
            .iter()
            .any(|opened| name.starts_with(&format!("lib{opened}.")))
    }) {
        None => Ok(()),
        Some(name) => Err(format!(
            "{name} was linked; the program would not start without it"
        )),
    }
}

/// Starts it; and with a model, if there is one, on the first GPU. Without a GPU it has to
/// say so and use the processor.
fn try_out(program: &Path) -> Result<(), String> {
    let mut version = Command::new(program);
    must({
        version.arg("--version");
        version
    })?;
    let model = "smollm2-135m-instruct";
    let shown = Command::new(program).args(["show", model]).output();
    if !shown.is_ok_and(|output| output.status.success()) {
        eprintln!("`llmpick pull {model}`, and this command tries that model on the GPU");
        return Ok(());
    }
    let mut bench = Command::new(program);
    bench.args(["bench", "engine", "--model", model, "--runs", "1"]);
    bench.args(["--prompt-tokens", "32", "--gen-tokens", "8"]);
    must({
        bench.args(["--set", "compute.device=\"cuda:0\""]);
        bench
    })
}

fn write_if_new(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|error| at("write", path, &error))
}

fn at(what: &str, path: &Path, error: &std::io::Error) -> String {
    format!("{what} {}: {error}", path.display())
}
