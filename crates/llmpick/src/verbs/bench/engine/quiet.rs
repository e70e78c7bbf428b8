//! Who else uses the processor: a measurement is worth nothing while somebody does.
//!
//! The kernel counts the time that all processors were busy, and the time that each process
//! used. What is left of the first after those that are measured is *foreign*.

use std::fs;
use std::path::Path;
use std::time::Instant;

/// Most foreign load, in cores, of a run that counts.
pub const MOST: f64 = 0.1;

/// Ticks of the kernel's clock per second; what Linux tells programs is in these on every
/// processor, whatever the kernel uses itself.
const TICKS: f64 = 100.0;

/// What cannot be seen at the two ends of a run: a tick each.
const GRAIN_S: f64 = 2.0 / TICKS;

/// Whose work is measured; all other work is foreign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This process, without those it started.
    Ours,
    /// Another process and those it started.
    Tree(u32),
}

/// The clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    at: Instant,
    busy: u64,
    stolen: u64,
    measured: u64,
}

/// What happened beside a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beside {
    /// Cores that others used.
    pub foreign: f64,
    /// Cores that the machine under this virtual one gave to others.
    pub stolen: f64,
    /// Whether the run counts.
    pub quiet: bool,
}

impl Sample {
    /// Now; `None` where the system does not say.
    pub fn now(whose: Whose) -> Option<Sample> {
        let (busy, stolen) = machine(&fs::read_to_string("/proc/stat").ok()?)?;
        let measured = match whose {
            Whose::Ours => of_process(&fs::read_to_string("/proc/self/stat").ok()?)?.own,
            Whose::Tree(root) => {
                let all = processes();
                descendants(root, &all)
                    .map(|process| process.own + process.waited_for)
                    .sum()
            }
        };
        Some(Sample {
            at: Instant::now(),
            busy,
            stolen,
            measured,
        })
    }

    /// What happened beside the measured work since `before`.
    pub fn since(&self, before: &Sample) -> Beside {
        let seconds = (self.at - before.at).as_secs_f64();
        let ticks = |now: u64, then: u64| now.saturating_sub(then);
        let busy = ticks(self.busy, before.busy);
        let foreign = ticks(busy, ticks(self.measured, before.measured));
        beside(seconds, foreign, ticks(self.stolen, before.stolen))
    }
}

fn beside(seconds: f64, foreign_ticks: u64, stolen_ticks: u64) -> Beside {
    let foreign_s = foreign_ticks as f64 / TICKS;
    let seconds = seconds.max(1e-9);
    Beside {
        foreign: foreign_s / seconds,
        stolen: stolen_ticks as f64 / TICKS / seconds,
        quiet: foreign_s <= MOST * seconds + GRAIN_S,
    }
}

/// The most memory that a process and those it started ever had, in bytes, each at its own
/// time; 0 where the system does not say.
pub fn peak_memory(root: u32) -> u64 {
    let all = processes();
    let peaks = descendants(root, &all).map(|process| {
        let status = fs::read_to_string(format!("/proc/{}/status", process.id));
        status.ok().and_then(|text| high_water(&text)).unwrap_or(0)
    });
    peaks.sum()
}

fn high_water(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Busy and stolen ticks of all processors since the start, of `/proc/stat`.
fn machine(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map_while(|t| t.parse().ok())
        .collect();
    // A guest's time is in its host's user time already.
    let &[
        user,
        nice,
        system,
        _idle,
        _waiting,
        interrupts,
        soft,
        stolen,
        ..,
    ] = ticks.as_slice()
    else {
        return None;
    };
    Some((user + nice + system + interrupts + soft, stolen))
}

/// Of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    id: u32,
    parent: u32,
    /// Ticks of its own threads.
    own: u64,
    /// Ticks of children that ended.
    waited_for: u64,
}

fn of_process(stat: &str) -> Option<Process> {
    // The name is in brackets and may hold anything, brackets too.
    let (id, rest) = stat.split_once(' ')?;
    let rest: Vec<&str> = rest.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| rest.get(at)?.parse::<u64>().ok();
    Some(Process {
        id: id.parse().ok()?,
        parent: rest.get(1)?.parse().ok()?,
        own: number(11)? + number(12)?,
        waited_for: number(13)? + number(14)?,
    })
}

fn processes() -> Vec<Process> {
    let folder = fs::read_dir(Path::new("/proc")).into_iter().flatten();
    let stats = folder
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        // A process may end while we look.
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter_map(|stat| of_process(&stat)).collect()
}

fn descendants(root: u32, all: &[Process]) -> impl Iterator<Item = &Process> {
    let parent_of = |id: u32| all.iter().find(|p| p.id == id).map(|p| p.parent);
    all.iter().filter(move |process| {
        let mut ancestors = std::iter::successors(Some(process.id), |id| parent_of(*id));
        // Ids go round, so a list read piece by piece might name a circle.
        ancestors.by_ref().take(64).any(|id| id == root)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_machines_line_is_added_up_without_idle_and_guests() {
        let stat = "cpu  100 20 30 5000 70 1 2 9 50 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(machine(stat), Some((153, 9)));
        assert_eq!(machine("cpu  100 20\n"), None);
        assert_eq!(machine("intr 1 2 3\n"), None);
    }

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "42 (a) b (c)) S 7 42 42 0 -1 4194304 1 2 3 4 100 20 3 1 20 0 5 0 9 9 9";
        let wanted = Process {
            id: 42,
            parent: 7,
            own: 120,
            waited_for: 4,
        };
        assert_eq!(of_process(stat), Some(wanted));
        assert_eq!(of_process("42 (a) S 7"), None);
    }

    #[test]
    fn a_tree_is_its_root_and_all_below() {
        let process = |id, parent| Process {
            id,
            parent,
            own: 0,
            waited_for: 0,
        };
        let all = [(1, 0), (5, 1), (6, 5), (7, 6), (8, 1), (20, 21), (21, 20)]
            .map(|(id, parent)| process(id, parent));
        let ids = |root| -> Vec<u32> { descendants(root, &all).map(|p| p.id).collect() };
        assert_eq!(ids(5), [5, 6, 7]);
        assert_eq!(ids(8), [8]);
        assert_eq!(ids(99), Vec::<u32>::new());
    }

    #[test]
    fn a_tenth_of_a_core_counts_and_more_does_not() {
        let load = beside(2.0, 20, 10);
        assert_eq!((load.foreign, load.stolen, load.quiet), (0.1, 0.05, true));
        assert!(beside(2.0, 22, 0).quiet, "within the grain of the clock");
        assert!(!beside(2.0, 23, 0).quiet);
        assert!(!beside(0.1, 4, 0).quiet);
    }

    #[test]
    fn what_this_process_does_is_not_foreign_to_it() {
        if !cfg!(target_os = "linux") {
            return;
        }
        let me = std::process::id();
        for whose in [Whose::Ours, Whose::Tree(me)] {
            let before = Sample::now(whose).unwrap();
            let mut after = before;
            let mut x = 1u64;
            // However few turns a busy machine gives us, they are counted as ours.
            while after.measured < before.measured + 3 {
                for _ in 0..1_000_000 {
                    x = std::hint::black_box(x.wrapping_mul(3));
                }
                after = Sample::now(whose).unwrap();
                assert!(after.at - before.at < Duration::from_secs(60), "{whose:?}");
            }
            assert!(after.busy >= before.busy);
        }
        assert!(peak_memory(me) > 1 << 20);
        assert_eq!(high_water("VmHWM:\t  2048 kB\n"), Some(2 << 20));
    }
}
