//! Promises of a scorer.

use std::time::{Duration, Instant};

use llmpick_plugin_abi as abi;

use super::Test;
use super::child::step;
use super::inputs::ScoreAsk;
use super::router_hard::{Times, grown, resident, thousands};
use super::subject::{Plugin, Subject, World, said};
use crate::ScorerOptions;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a grade is a number from 0 to 1, or none",
        run: grades,
    },
    Test {
        name: "empty and huge texts",
        run: sizes,
    },
    Test {
        name: "text that is no UTF-8, outcomes of a newer header",
        run: invalid,
    },
    Test {
        name: "same seed, same grade",
        run: deterministic,
    },
    Test {
        name: "calls from rotating threads, and two instances at once",
        run: threads,
    },
    Test {
        name: "strict memory",
        run: strict_memory,
    },
    Test {
        name: "a newer host: longer structs",
        run: newer_host,
    },
    Test {
        name: "10,000 grades: in time, without growth",
        run: many,
    },
    Test {
        name: "it tells good from bad (reported, not judged)",
        run: sense,
    },
];

/// A grade, `None` where it abstained.
fn grade(subject: &mut Subject, ask: &ScoreAsk<'_>) -> Result<Option<f64>, String> {
    match subject.score(ask) {
        Ok((value, _)) if !(0.0..=1.0).contains(&value) => Err(format!(
            "it graded {} with {value}; a grade is a number from 0 to 1",
            shown(ask.response)
        )),
        Ok((_, confidence)) if !(confidence.is_nan() || (0.0..=1.0).contains(&confidence)) => Err(
            format!("its confidence is {confidence}; it is 0 to 1, or NaN"),
        ),
        Ok((value, _)) => Ok(Some(value)),
        Err(error) if error.status == abi::E_ABSTAIN => Ok(None),
        Err(error) => Err(format!(
            "it did not grade {}: {}",
            shown(ask.response),
            said(&error)
        )),
    }
}

/// The beginning of a text, in quotes.
fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let start: String = text.chars().take(30).collect();
    let more = if start.len() < text.len() { "…" } else { "" };
    format!("`{}{more}`", start.escape_debug())
}

/// Answers as models give them: prompt, response, reference.
const ANSWERS: [(&str, &str, &str); 8] = [
    (
        "What is the capital of France?",
        "The capital of France is Paris.",
        "Paris",
    ),
    ("What is 6 times 7?", "42", "42"),
    ("What is 6 times 7?", "It is -1.5e3, I think.", "42"),
    ("Which is right? A, B, C or D?", "B", "C"),
    ("Say something.", "Nothing to go by here.", ""),
    (
        "Sum this up.",
        "the cat was found under the bed",
        "the cat was under the bed",
    ),
    (
        "Übersetze.",
        "Größe, naïve, 東京, 👩‍👩‍👧, e\u{301}\u{0}\r\n\t",
        "Größe",
    ),
    ("", "nan inf 1e999 0x1p3", "nan"),
];

fn grades(plugin: &Plugin) -> Result<String, String> {
    let mut subject = Subject::new(plugin)?;
    let mut graded = 0;
    for (prompt, response, reference) in ANSWERS {
        step(format!("grading {}", shown(response.as_bytes())));
        let ask = ScoreAsk::new(prompt, response, reference);
        graded += usize::from(grade(&mut subject, &ask)?.is_some());
    }
    let all = ANSWERS.len();
    Ok(format!(
        "{graded} of {all} answers graded, it abstained from the others"
    ))
}

fn sizes(plugin: &Plugin) -> Result<String, String> {
    let mut subject = Subject::new(plugin)?;
    let long = "the quick brown fox jumps over the lazy dog ".repeat(1 << 13);
    let one_word = "x".repeat(1 << 18);
    let spaces = " \n".repeat(1 << 17);
    let cases = [
        ("nothing at all", "", "", ""),
        ("an empty answer", "What?", "", "this"),
        ("an empty reference", "What?", "this", ""),
        ("an answer of 360,000 letters", "What?", &long, "the fox"),
        ("a reference of 360,000 letters", "What?", "the fox", &long),
        ("a word of 260,000 letters", "What?", &one_word, &one_word),
        ("260,000 blanks", "What?", &spaces, &spaces),
    ];
    for (what, prompt, response, reference) in cases {
        step(format!("grading {what}"));
        let ask = ScoreAsk::new(prompt, response, reference);
        // A scorer may say that a text is too much for it.
        match subject.score(&ask) {
            Err(error) if error.status == abi::E_INVALID => {}
            _ => drop(grade(&mut subject, &ask)?),
        }
    }
    step("grading after that");
    grade(&mut subject, &ScoreAsk::new("What?", "this", "this")).map(|_| String::new())
}

fn invalid(plugin: &Plugin) -> Result<String, String> {
    let mut subject = Subject::new(plugin)?;
    let good = ScoreAsk::new("What?", "this", "this");
    let cases = [
        (
            "an answer that is no UTF-8",
            ScoreAsk {
                response: b"\xff\xfe\x80",
                ..good
            },
        ),
        (
            "a reference that is no UTF-8",
            ScoreAsk {
                reference: b"\xc3",
                ..good
            },
        ),
        (
            "an unknown outcome",
            ScoreAsk {
                outcome: 99,
                ..good
            },
        ),
        (
            "an answer of a call that failed",
            ScoreAsk {
                outcome: abi::OUTCOME_ERROR,
                ..good
            },
        ),
    ];
    for (what, ask) in cases {
        step(format!("grading {what}"));
        // It may refuse, in words; it must not break, and a grade must be one.
        match subject.score(&ask) {
            Err(error) if error.status == abi::E_PANIC => {
                return Err(format!("{what} broke it: {}", said(&error)));
            }
            Err(_) => {}
            Ok(_) => drop(grade(&mut subject, &ask)?),
        }
    }
    step("grading after that");
    grade(&mut subject, &good).map(|_| String::new())
}

/// All answers, graded with seeds that depend on the place only.
fn all(subject: &mut Subject) -> Result<Vec<Option<u64>>, String> {
    let one = |(seed, (prompt, response, reference)): (u64, (&str, &str, &str))| {
        let ask = ScoreAsk {
            seed,
            ..ScoreAsk::new(prompt, response, reference)
        };
        Ok(grade(subject, &ask)?.map(f64::to_bits))
    };
    (0..).zip(ANSWERS).map(one).collect()
}

fn equal(left: &[Option<u64>], right: &[Option<u64>]) -> Result<(), String> {
    for ((l, r), (_, response, _)) in left.iter().zip(right).zip(ANSWERS) {
        if l != r {
            let show = |grade: &Option<u64>| match grade {
                Some(bits) => f64::from_bits(*bits).to_string(),
                None => "none".to_owned(),
            };
            return Err(format!(
                "the grade of {} is {} and {}",
                shown(response.as_bytes()),
                show(l),
                show(r)
            ));
        }
    }
    Ok(())
}

fn deterministic(plugin: &Plugin) -> Result<String, String> {
    let (mut one, mut other) = (Subject::new(plugin)?, Subject::new(plugin)?);
    step("grading the same again and again");
    let expected = all(&mut one)?;
    equal(&expected, &all(&mut one)?)?;
    equal(&expected, &all(&mut other)?)?;
    Ok(String::new())
}

fn threads(plugin: &Plugin) -> Result<String, String> {
    let expected = all(&mut Subject::new(plugin)?)?;
    step("called from another thread each time");
    let mut moving = Subject::new(plugin)?;
    for _ in 0..50 {
        let seen = std::thread::scope(|scope| scope.spawn(|| all(&mut moving)).join());
        equal(
            &expected,
            &seen.map_err(|_| "a thread panicked".to_owned())??,
        )?;
    }
    step("two instances ran on two threads at the same time");
    let both: Vec<_> = std::thread::scope(|scope| {
        let run = || {
            let mut subject = Subject::new(plugin)?;
            (0..50)
                .map(|_| all(&mut subject))
                .collect::<Result<Vec<_>, _>>()
        };
        [scope.spawn(run), scope.spawn(run)]
            .map(|thread| thread.join())
            .into()
    });
    for seen in both {
        for seen in seen.map_err(|_| "a thread panicked".to_owned())?? {
            equal(&expected, &seen)?;
        }
    }
    Ok(String::new())
}

fn strict_memory(plugin: &Plugin) -> Result<String, String> {
    in_world(plugin, World::Strict)
}

fn newer_host(plugin: &Plugin) -> Result<String, String> {
    in_world(plugin, World::Newer)
}

fn in_world(plugin: &Plugin, world: World) -> Result<String, String> {
    let expected = all(&mut Subject::new(plugin)?)?;
    step("creating an instance");
    let mut odd = Subject::in_world(plugin, world)?;
    step("grading");
    equal(&expected, &all(&mut odd)?)?;
    equal(&expected, &all(&mut odd)?)?;
    step("ending the instance");
    drop(odd);
    Ok(String::new())
}

/// The rule for time is the router's, with the host's default deadline for grades (2 s).
fn many(plugin: &Plugin) -> Result<String, String> {
    const GRADES: usize = 10_000;
    const AT_MOST: Duration = Duration::from_secs(40);
    let mut subject = Subject::new(plugin)?;
    let mut times = Times::new(GRADES, ScorerOptions::default().deadline);
    step("grading answers of 200 words, again and again");
    let response = "the quick brown fox jumps over a lazy dog and sleeps ".repeat(18);
    let reference = "a quick dog sleeps while the brown fox jumps over it ".repeat(18);
    let start = Instant::now();
    let (mut before, mut made) = (0, 0);
    while made < GRADES && start.elapsed() < AT_MOST {
        if made == GRADES / 10 {
            before = resident();
        }
        let ask = ScoreAsk {
            seed: made as u64,
            ..ScoreAsk::new("What does the fox do?", &response, &reference)
        };
        grade(&mut subject, &ask)?;
        times.add(subject.took);
        times.hold("score")?;
        made += 1;
    }
    // Before anything else is done here that takes memory.
    let now = resident();
    let mut note = format!("{} grades: {}", thousands(made), times.words());
    if made > GRADES / 10 {
        let growth = grown(now - before, made - GRADES / 10, "grades")?;
        note.push_str(&format!("; {growth}"));
    }
    Ok(note)
}

/// A scorer may grade by anything, so this is only told.
fn sense(plugin: &Plugin) -> Result<String, String> {
    let mut subject = Subject::new(plugin)?;
    let reference = "the cat was under the bed";
    let mut show = |response: &str| -> Result<String, String> {
        let ask = ScoreAsk::new("Where was the cat?", response, reference);
        Ok(match grade(&mut subject, &ask)? {
            Some(grade) => format!("{grade:.3}"),
            None => "none".to_owned(),
        })
    };
    step("grading a right, a near and a wrong answer");
    Ok(format!(
        "right {}, near {}, wrong {}",
        show(reference)?,
        show("the cat was found under the bed")?,
        show("blue")?
    ))
}
