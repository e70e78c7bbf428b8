//! Starts one process per test and turns however it ends into a sentence.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::child::{Line, MARK};
use super::{Kit, KitError, LOADS, Summary, Task, TestResult, tests};
use crate::PluginKind;

/// Lines of a child's standard error that are kept.
const TAIL: usize = 5;

pub(super) fn run(kit: &Kit<'_>, mut each: impl FnMut(&TestResult)) -> Result<Summary, KitError> {
    check_settings(kit.settings)?;
    let mut summary = Summary::default();
    let mut report = |result: TestResult| {
        match result.passed {
            true => summary.passed += 1,
            false => summary.failed += 1,
        }
        each(&result);
    };
    let ended = one(kit, None, LOADS)?;
    let held = ended.holds.clone();
    report(ended.result(None, LOADS));
    let Some(held) = held else {
        return Ok(summary);
    };
    for (plugin, test) in planned(kit, &held)? {
        report(one(kit, Some(&plugin), test)?.result(Some(&plugin), test));
    }
    Ok(summary)
}

fn check_settings(json: &str) -> Result<(), KitError> {
    match serde_json::from_str(json) {
        Ok(serde_json::Value::Object(_)) => Ok(()),
        Ok(_) => Err(KitError::Settings("they must be a JSON object".to_owned())),
        Err(error) => Err(KitError::Settings(error.to_string())),
    }
}

type Held = (PluginKind, String);

fn planned(kit: &Kit<'_>, held: &[Held]) -> Result<Vec<(Held, &'static str)>, KitError> {
    let wanted = |name: &str| kit.plugin.is_none_or(|plugin| plugin == name);
    let plugins: Vec<&Held> = held.iter().filter(|(_, name)| wanted(name)).collect();
    if plugins.is_empty() {
        let words = held.iter().map(|(kind, name)| format!("{kind} `{name}`"));
        return Err(KitError::NoSuchPlugin {
            name: kit.plugin.unwrap_or_default().to_owned(),
            held: words.collect::<Vec<_>>().join(", "),
        });
    }
    let all = plugins.into_iter().flat_map(|plugin| {
        tests(plugin.0)
            .into_iter()
            .map(|test| (plugin.clone(), test.name))
    });
    let all: Vec<_> = all.collect();
    let Some(only) = kit.only else {
        return Ok(all);
    };
    let chosen: Vec<_> = all
        .iter()
        .filter(|(_, name)| name.contains(only))
        .cloned()
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = all.iter().map(|(_, name)| *name).collect();
        return Err(KitError::NoSuchTest(only.to_owned(), names.join("\n  ")));
    }
    Ok(chosen)
}

/// How one process ended.
#[derive(Default)]
struct Ended {
    step: String,
    fault: Option<String>,
    holds: Option<Vec<Held>>,
    verdict: Option<Result<String, String>>,
    /// Its last words on standard error.
    tail: Vec<String>,
    /// `None` when it was still running and was ended.
    status: Option<ExitStatus>,
    waited: Duration,
}

fn one(kit: &Kit<'_>, plugin: Option<&Held>, test: &str) -> Result<Ended, KitError> {
    let task = Task {
        file: kit.file.to_owned(),
        plugin: plugin.cloned(),
        test: test.to_owned(),
        settings: kit.settings.to_owned(),
    };
    let mut child = (kit.child)(&task)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(KitError::Spawn)?;
    let lines = child
        .stdout
        .take()
        .map(|out| in_background(out, read_lines));
    let tail = child.stderr.take().map(|err| in_background(err, read_tail));
    let status = wait(&mut child, kit.time_limit).map_err(KitError::Spawn)?;
    let mut ended = Ended {
        status,
        waited: kit.time_limit,
        tail: tail
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default(),
        ..Ended::default()
    };
    let lines = lines.and_then(|thread| thread.join().ok());
    for line in lines.unwrap_or_default() {
        match line {
            Line::Step(step) => ended.step = step,
            Line::Fault(fault) => ended.fault = Some(fault),
            Line::Holds(held, note) => {
                ended.holds = Some(held);
                ended.verdict = Some(Ok(note));
            }
            Line::Passed(note) => ended.verdict = Some(Ok(note)),
            Line::Failed(why) => ended.verdict = Some(Err(why)),
        }
    }
    Ok(ended)
}

impl Ended {
    fn result(self, plugin: Option<&Held>, test: &str) -> TestResult {
        let verdict = self.verdict();
        TestResult {
            plugin: plugin.map_or(String::new(), |(_, name)| name.clone()),
            kind: plugin.map(|(kind, _)| *kind),
            test: test.to_owned(),
            passed: verdict.is_ok(),
            note: verdict.unwrap_or_else(|why| why),
        }
    }

    fn verdict(self) -> Result<String, String> {
        let told = self.verdict.is_some();
        let during = match (told, self.step.as_str()) {
            (true, _) => " after the test, as its process ended".to_owned(),
            (false, "") => " before it began".to_owned(),
            (false, step) => format!(" while {step}"),
        };
        let why = self.fault.map_or(String::new(), |why| format!(": {why}"));
        // A program that ends itself usually says why.
        let words = match self.tail.last() {
            Some(last) => format!(" (it said: {last})"),
            None => String::new(),
        };
        let Some(status) = self.status else {
            let waited = self.waited;
            return Err(format!("it did not come back within {waited:?}{during}"));
        };
        match (status.signal(), status.code(), self.verdict) {
            (Some(signal), _, _) => Err(format!(
                "it crashed with {}{during}{why}{words}",
                signal_name(signal)
            )),
            (None, Some(0), Some(verdict)) => verdict,
            (None, code, _) => Err(format!(
                "it ended the process with code {}{during}{words}",
                code.unwrap_or(-1)
            )),
        }
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGSEGV => "SIGSEGV (invalid memory)",
        libc::SIGBUS => "SIGBUS (invalid memory)",
        libc::SIGABRT => "SIGABRT (abort)",
        libc::SIGFPE => "SIGFPE (division by zero)",
        libc::SIGILL => "SIGILL (invalid instruction)",
        libc::SIGKILL => "SIGKILL (somebody ended it, or memory ran out)",
        libc::SIGTRAP => "SIGTRAP (trap)",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// Waits, but no longer than `limit`; then the process is ended and the answer is `None`.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn in_background<S: Read + Send + 'static, T: Send + 'static>(
    stream: S,
    read: fn(S) -> T,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || read(stream))
}

/// The lines of the protocol; whatever else a plugin wrote there is passed over.
fn read_lines(stream: impl Read) -> Vec<Line> {
    BufReader::new(stream)
        .split(b'\n')
        .map_while(Result::ok)
        .filter_map(|line| {
            let line = String::from_utf8(line).ok()?;
            serde_json::from_str(line.strip_prefix(MARK)?).ok()
        })
        .collect()
}

/// The last lines with something on them.
fn read_tail(stream: impl Read) -> Vec<String> {
    let mut tail = VecDeque::new();
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        let line = crate::context::clean(&line[..line.len().min(300)]);
        if line.is_empty() {
            continue;
        }
        tail.push_back(line);
        if tail.len() > TAIL {
            tail.pop_front();
        }
    }
    tail.into()
}
