//! Promises of a router about threads, memory, time and learning.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use llmpick_plugin_abi as abi;

use super::Test;
use super::child::step;
use super::inputs::{Arm, Ask, Feedback, arm, share};
use super::router::{Decision, ask, live, one_round, pool, runs, same, state, told};
use super::subject::{LOGGED, Plugin, Subject, World, said};
use crate::RouterOptions;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "calls from rotating threads",
        run: rotating_threads,
    },
    Test {
        name: "two instances share nothing",
        run: instances,
    },
    Test {
        name: "strict memory",
        run: strict_memory,
    },
    Test {
        name: "a newer host: longer structs, larger stride",
        run: newer_host,
    },
    Test {
        name: "it logs in measure",
        run: logs,
    },
    Test {
        name: "1,000 instances leave no memory behind",
        run: many_instances,
    },
    Test {
        name: "100,000 selects: in time, without growth",
        run: many_selects,
    },
    Test {
        name: "it learns (reported, not judged)",
        run: learns,
    },
];

fn rotating_threads(plugin: &Plugin) -> Result<String, String> {
    let arms = pool(5);
    let mut still = Subject::new(plugin)?;
    let expected = live(&mut still, plugin, &arms, 0..100)?;
    step("called from another thread each time");
    let mut moving = Some(Subject::new(plugin)?);
    let mut seen = Vec::new();
    for round in 0..100 {
        let (subject, decision) = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut subject = moving.take().ok_or("the instance was lost")?;
                let decided = live(&mut subject, plugin, &pool(5), round..round + 1)?;
                Ok::<_, String>((subject, decided))
            });
            thread
                .join()
                .unwrap_or_else(|_| Err("a thread panicked".to_owned()))
        })?;
        moving = Some(subject);
        seen.extend(decision);
    }
    same(&expected, &seen).map_err(|why| format!("called from rotating threads, {why}"))?;
    step("destroyed on a thread that did not make it");
    std::thread::scope(|scope| scope.spawn(|| drop(moving)).join())
        .map_err(|_| "a thread panicked".to_owned())?;
    Ok(String::new())
}

fn instances(plugin: &Plugin) -> Result<String, String> {
    let arms = pool(5);
    step("one instance was alone");
    let mut alone = Subject::new(plugin)?;
    let expected = live(&mut alone, plugin, &arms, 0..150)?;
    step("two instances took turns");
    let (mut one, mut other) = (Subject::new(plugin)?, Subject::new(plugin)?);
    let mut seen = Vec::new();
    for round in 0..150 {
        // The other one lives through another life, with other arms and opposite scores.
        let asked = Ask::over((3..7).map(arm).collect(), 10_000 + round);
        let decision = ask(&mut other, plugin, &asked)?;
        let ran = &asked.arms[runs(&decision, &asked)[0] as usize];
        let mut opposite = Feedback::new(&asked, ran, 0);
        opposite.raw.score = 1.0 - opposite.raw.score;
        told(other.feedback(&opposite))?;
        seen.extend(live(&mut one, plugin, &arms, round..round + 1)?);
    }
    drop(other);
    same(&expected, &seen).map_err(|why| format!("beside another instance, {why}"))?;
    if state(&mut one)? != state(&mut alone)? {
        return Err("beside another instance, it writes another snapshot".to_owned());
    }
    step("two instances ran on two threads at the same time");
    let both: Vec<Result<Vec<Decision>, String>> = std::thread::scope(|scope| {
        let run = || live(&mut Subject::new(plugin)?, plugin, &pool(5), 0..150);
        let threads = [scope.spawn(run), scope.spawn(run)];
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|_| Err("a thread panicked".to_owned()))
        };
        threads.map(join).into()
    });
    for seen in both {
        same(&expected, &seen?).map_err(|why| format!("beside one on another thread, {why}"))?;
    }
    Ok(String::new())
}

fn strict_memory(plugin: &Plugin) -> Result<String, String> {
    in_world(plugin, World::Strict)
}

fn newer_host(plugin: &Plugin) -> Result<String, String> {
    in_world(plugin, World::Newer)
}

/// The same life in ordinary memory and in this one: the same decisions, and no crash.
fn in_world(plugin: &Plugin, world: World) -> Result<String, String> {
    let (mut plain, mut odd) = (Subject::new(plugin)?, {
        step("creating an instance");
        Subject::in_world(plugin, world)?
    });
    for count in [1, 2, 3, 5, 64] {
        for max_arms in [1, 2, 64] {
            let mut asked = Ask::new(count, u64::from(count * 100 + max_arms));
            asked.raw.max_arms = max_arms;
            asked.task = "a tag".to_owned();
            asked.session = "a session".to_owned();
            step(format!("choosing at most {max_arms} of {count} arms"));
            let seen = one_round(&mut odd, plugin, &asked)?;
            let expected = one_round(&mut plain, plugin, &asked)?;
            same(&[expected], &[seen])?;
        }
    }
    step("choosing and learning");
    let arms = pool(4);
    let expected = live(&mut plain, plugin, &arms, 0..40)?;
    same(&expected, &live(&mut odd, plugin, &arms, 0..40)?)?;
    step("abstaining where nobody is eligible");
    let mut nobody = Ask::new(3, 1);
    nobody
        .arms
        .iter_mut()
        .for_each(|arm| arm.set_eligible(false));
    drop(odd.select(&nobody));
    step("writing a snapshot");
    let learnt = state(&mut odd)?;
    step("restoring its own snapshot");
    if let Some(Err(error)) = odd.restore(plugin.info.state_version, &learnt) {
        return Err(format!(
            "it did not take its own snapshot: {}",
            said(&error)
        ));
    }
    step("refusing a bad state");
    drop(odd.restore(plugin.info.state_version, b"\xffno state"));
    step("choosing after a restore");
    live(&mut odd, plugin, &arms, 100..120)?;
    step("ending the instance");
    drop(odd);
    Ok(String::new())
}

/// The host keeps 50 lines at once and then ten a second; it writes warnings and errors
/// unless it is asked for more, which is what `max_log_level` answers here.
fn logs(plugin: &Plugin) -> Result<String, String> {
    let mut subject = Subject::new(plugin)?;
    LOGGED.store(0, Ordering::Release);
    step("choosing and learning, its log lines counted");
    live(&mut subject, plugin, &pool(5), 0..100)?;
    match LOGGED.load(Ordering::Acquire) {
        lines @ 0..=50 => Ok(match lines {
            0 => String::new(),
            lines => format!("{lines} lines in 100 rounds"),
        }),
        lines => Err(format!(
            "it wrote {lines} warnings and errors in 100 rounds; the host keeps 50 at once and \
             then 10 a second"
        )),
    }
}

/// What the host allows a plugin's memory to grow by.
pub(super) const GROWTH: i64 = 1 << 20;

fn many_instances(plugin: &Plugin) -> Result<String, String> {
    step("making and ending instances");
    let lives = |count: u64| -> Result<(), String> {
        for _ in 0..count {
            live(&mut Subject::new(plugin)?, plugin, &pool(3), 0..3)?;
        }
        Ok(())
    };
    lives(300)?;
    let before = resident();
    lives(1_000)?;
    grown(resident() - before, 1_000, "instances")
}

/// The rule for time: 99 of 100 calls must come back within the host's default deadline
/// (100 ms), by the clock on the wall. The test ends early once that cannot hold any more.
fn many_selects(plugin: &Plugin) -> Result<String, String> {
    const SELECTS: usize = 100_000;
    const AT_MOST: Duration = Duration::from_secs(40);
    let budget = RouterOptions::default().deadline;
    let mut subject = Subject::new(plugin)?;
    let mut times = Times::new(SELECTS, budget);
    let mut feedback = Times::new(SELECTS, budget);
    step("choosing among 32 candidates, again and again");
    let mut asked = Ask::new(32, 0);
    let start = Instant::now();
    let (mut before, mut rounds) = (0, 0);
    while rounds < SELECTS && start.elapsed() < AT_MOST {
        if rounds == SELECTS / 10 {
            before = resident();
        }
        let round = rounds as u64;
        let fresh = Ask::over(Vec::new(), round);
        asked.raw = fresh.raw;
        let decision = ask(&mut subject, plugin, &asked)?;
        times.add(subject.took);
        if let Some(&index) = runs(&decision, &asked).first() {
            told(subject.feedback(&Feedback::new(&asked, &asked.arms[index as usize], 0)))?;
            feedback.add(subject.took);
        }
        rounds += 1;
        times.hold("select")?;
        feedback.hold("feedback")?;
    }
    // Before anything else is done here that takes memory.
    let now = resident();
    let mut note = format!(
        "{} selects among 32 arms: {}; feedback {}",
        thousands(rounds),
        times.words(),
        feedback.words()
    );
    if rounds < SELECTS {
        note.push_str(&format!("; stopped after {AT_MOST:?}"));
    }
    if rounds > SELECTS / 10 {
        let growth = grown(now - before, rounds - SELECTS / 10, "selects")?;
        note.push_str(&format!("; {growth}"));
    }
    Ok(note)
}

/// How long calls took, against what they may take.
pub(super) struct Times {
    nanoseconds: Vec<u64>,
    budget: Duration,
    late: usize,
}

impl Times {
    pub(super) fn new(room: usize, budget: Duration) -> Self {
        // Touched now, so that it does not count as growth of the plugin later.
        let mut nanoseconds = vec![1; room];
        nanoseconds.clear();
        Self {
            nanoseconds,
            budget,
            late: 0,
        }
    }

    pub(super) fn add(&mut self, took: Duration) {
        self.nanoseconds.push(took.as_nanos() as u64);
        self.late += usize::from(took > self.budget);
    }

    /// An error once more than ten calls, and more than one in a hundred, were late.
    pub(super) fn hold(&self, what: &str) -> Result<(), String> {
        let made = self.nanoseconds.len();
        if self.late <= 10.max(made / 100) {
            return Ok(());
        }
        Err(format!(
            "{} of {made} calls of {what} took longer than the budget of {:?}: {}",
            self.late,
            self.budget,
            self.words()
        ))
    }

    /// `p50 1.2 µs, p99 3.4 µs, most 56 µs`.
    pub(super) fn words(&self) -> String {
        let mut sorted = self.nanoseconds.clone();
        sorted.sort_unstable();
        let at = |share: f64| {
            let place = (sorted.len() as f64 * share) as usize;
            sorted.get(place.min(sorted.len().saturating_sub(1)))
        };
        let show = |nanoseconds: Option<&u64>| match nanoseconds {
            None => "–".to_owned(),
            Some(&ns) if ns < 1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
            Some(&ns) => format!("{:.1} ms", ns as f64 / 1e6),
        };
        format!(
            "p50 {}, p99 {}, most {}",
            show(at(0.5)),
            show(at(0.99)),
            show(at(1.0))
        )
    }
}

/// Memory of this process that is in use, in bytes; 0 where the system does not say.
pub(super) fn resident() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: i64 = pages
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or_default();
    // SAFETY: a question without preconditions.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) }
}

/// Judges a growth of so many bytes.
pub(super) fn grown(grown: i64, count: usize, what: &str) -> Result<String, String> {
    if grown > GROWTH {
        return Err(format!(
            "its memory grew by {} KiB in {} {what}; allowed are {} KiB",
            grown >> 10,
            thousands(count),
            GROWTH >> 10
        ));
    }
    Ok(format!("memory grew by {} KiB", grown.max(0) >> 10))
}

/// `100,000`.
pub(super) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Four arms at the same price, one of them right in nine of ten cases, the others in three:
/// how often does it choose the good one at last? A router need not learn, so this is only
/// told.
fn learns(plugin: &Plugin) -> Result<String, String> {
    const ROUNDS: u64 = 3_000;
    const LAST: u64 = 1_000;
    let mut subject = Subject::new(plugin)?;
    step("learning which of four arms is good");
    let mut arms: Vec<Arm> = pool(4);
    for arm in &mut arms {
        arm.raw = abi::Candidate { ..self::arm(0).raw };
    }
    let (mut good, mut won) = (0u64, 0.0);
    for round in 0..ROUNDS {
        let mut asked = Ask::over(arms.clone(), round);
        asked.raw.max_arms = 1;
        asked.raw.allowed_modes = abi::MODE_SINGLE;
        let decision = ask(&mut subject, plugin, &asked)?;
        let index = runs(&decision, &asked)[0];
        let chance = if index == 2 { 0.9 } else { 0.3 };
        let score = f64::from(u8::from(share(round * 4 + u64::from(index)) < chance));
        let mut feedback = Feedback::new(&asked, &asked.arms[index as usize], 0);
        feedback.raw.score = score;
        told(subject.feedback(&feedback))?;
        if round >= ROUNDS - LAST {
            good += u64::from(index == 2);
            won += score;
        }
    }
    Ok(format!(
        "the good one of four arms in {:.0} % of the last {LAST} of {ROUNDS} rounds, mean score \
         {:.3} (by chance 25 % and 0.450)",
        good as f64 / LAST as f64 * 100.0,
        won / LAST as f64
    ))
}
