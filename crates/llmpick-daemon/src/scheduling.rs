//! The scheduler that `serve --scheduler` is: marginals that are held, and sets drawn of them.
//!
//! Pure state: no clock, no I/O. The handler says which arms are free.

use std::collections::{HashMap, VecDeque};

use llmpick_core::ArmId;
use llmpick_plugin_host::{draw, nth_seed, redeal};
use llmpick_remote::schedule::{Away, Marginals, Reason, ScheduleCall, ScheduleReply, VERSION};

/// Most arms of one question.
const MOST_ARMS: usize = 1024;
/// How far a sum of probabilities may be off.
const TOLERANCE: f64 = 1e-6;

/// What clients' marginals are held, the oldest forgotten first.
pub(crate) struct Sessions {
    held: HashMap<String, Held>,
    /// Sessions in the order in which they came.
    order: VecDeque<String>,
    most: usize,
}

struct Held {
    sequence: u64,
    marginals: Marginals,
}

/// Why there is no set.
#[derive(Debug, PartialEq)]
pub(crate) enum Refused {
    /// The question makes no sense: the field, and a sentence.
    Wrong(&'static str, String),
    /// Nothing is held for this session.
    UnknownSession,
    /// Everybody is full or down.
    NoArmFree(Vec<Away>),
}

impl Sessions {
    /// Holds at most so many.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            held: HashMap::new(),
            order: VecDeque::new(),
            most: most.max(1),
        }
    }

    /// Draws a set. `away` says why an arm cannot run now; one that is not of this pool is the
    /// client's own affair and counts as free.
    pub(crate) fn answer(
        &mut self,
        call: &ScheduleCall,
        away: impl Fn(&ArmId) -> Option<Reason>,
    ) -> Result<ScheduleReply, Refused> {
        check_head(call)?;
        let brought = call
            .marginals()
            .map_err(|problem| Refused::Wrong("seed", problem.to_owned()))?;
        if let Some(marginals) = brought {
            check(&marginals)?;
            self.hold(&call.session, call.sequence, marginals);
        }
        let held = self
            .held
            .get(&call.session)
            .ok_or(Refused::UnknownSession)?;
        let Some(draws) = call.sequence.checked_sub(held.sequence) else {
            let message = format!(
                "the marginals held came with {}, so {} is over",
                held.sequence, call.sequence
            );
            return Err(Refused::Wrong("sequence", message));
        };
        drawn(&held.marginals, draws, away)
    }

    fn hold(&mut self, session: &str, sequence: u64, marginals: Marginals) {
        let held = Held {
            sequence,
            marginals,
        };
        if self.held.insert(session.to_owned(), held).is_some() {
            return;
        }
        self.order.push_back(session.to_owned());
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.held.remove(&oldest);
        }
    }
}

fn drawn(
    marginals: &Marginals,
    draws: u64,
    away: impl Fn(&ArmId) -> Option<Reason>,
) -> Result<ScheduleReply, Refused> {
    let reasons: Vec<Option<Reason>> = marginals.arms.iter().map(away).collect();
    let free: Vec<bool> = reasons.iter().map(Option::is_none).collect();
    let away: Vec<Away> = marginals
        .arms
        .iter()
        .zip(&reasons)
        .filter_map(|(arm, reason)| {
            let arm = arm.clone();
            reason.map(|reason| Away { arm, reason })
        })
        .collect();
    let z = redeal(&marginals.z, &free);
    if z.iter().all(|z| *z <= 0.0) {
        return Err(Refused::NoArmFree(away));
    }
    let seed = nth_seed(marginals.seed, draws);
    let choices = draw(&z, seed, marginals.max_arms);
    Ok(ScheduleReply {
        version: VERSION,
        choices: choices
            .into_iter()
            .filter_map(|index| marginals.arms.get(index as usize).cloned())
            .collect(),
        z,
        away,
    })
}

fn check_head(call: &ScheduleCall) -> Result<(), Refused> {
    if call.version != VERSION {
        let message = format!(
            "this scheduler speaks version {VERSION}, and the question has version {}",
            call.version
        );
        return Err(Refused::Wrong("version", message));
    }
    match call.session.len() {
        1..=100 => Ok(()),
        length => Err(Refused::Wrong(
            "session",
            format!("`session` has to have 1 to 100 bytes, not {length}"),
        )),
    }
}

fn check(marginals: &Marginals) -> Result<(), Refused> {
    let wrong = |field, message: String| Err(Refused::Wrong(field, message));
    let Marginals {
        arms, z, max_arms, ..
    } = marginals;
    if arms.is_empty() || arms.len() > MOST_ARMS || arms.len() != z.len() {
        let message = format!(
            "`arms` and `z` have to be of one length from 1 to {MOST_ARMS}, not {} and {}",
            arms.len(),
            z.len()
        );
        return wrong("arms", message);
    }
    let twice = |(place, arm): &(usize, &ArmId)| arms.iter().take(*place).any(|a| a == *arm);
    if let Some((_, arm)) = arms.iter().enumerate().find(twice) {
        return wrong("arms", format!("`{arm}` is in `arms` twice"));
    }
    if let Some(bad) = z.iter().find(|z| !(0.0..=1.0).contains(*z)) {
        return wrong("z", format!("`z` has {bad}, which is no probability"));
    }
    let (total, most) = (z.iter().sum::<f64>(), f64::from(*max_arms));
    if *max_arms == 0 || total < TOLERANCE || total > most + TOLERANCE {
        let message = format!("`z` adds up to {total} where at most {max_arms} arms may run");
        return wrong("z", message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use llmpick_core::Mode;

    use super::*;

    fn ids(names: &[&str]) -> Vec<ArmId> {
        names.iter().map(|name| ArmId::new(name).unwrap()).collect()
    }

    fn marginals(seed: u64, z: &[f64]) -> Marginals {
        Marginals {
            seed,
            arms: ids(&["a", "b", "c"][..z.len()]),
            z: z.to_vec(),
            max_arms: 2,
            mode: Mode::AnyWin,
        }
    }

    fn full(session: &str, sequence: u64, seed: u64, z: &[f64]) -> ScheduleCall {
        ScheduleCall::with(session, sequence, &marginals(seed, z))
    }

    fn nobody(_: &ArmId) -> Option<Reason> {
        None
    }

    #[test]
    fn a_set_is_the_one_that_the_machine_itself_would_draw() {
        let mut sessions = Sessions::new(4);
        for seed in 0..200 {
            let z = [0.7, 0.9, 0.4];
            let reply = sessions.answer(&full("s", seed, seed, &z), nobody).unwrap();
            let want: Vec<ArmId> = draw(&z, seed, 2)
                .into_iter()
                .map(|i| ids(&["a", "b", "c"])[i as usize].clone())
                .collect();
            assert_eq!(reply.choices, want);
            assert_eq!(reply.z, z);
        }
    }

    #[test]
    fn held_marginals_give_a_fresh_set_each_time_and_the_same_for_the_same_question() {
        let mut sessions = Sessions::new(4);
        let z = [0.5, 0.5, 0.5];
        sessions.answer(&full("s", 5, 9, &z), nobody).unwrap();
        let mut count = [0u32; 3];
        let rounds = 4_000;
        for sequence in 6..6 + rounds {
            let call = ScheduleCall::again("s", sequence);
            let reply = sessions.answer(&call, nobody).unwrap();
            assert_eq!(sessions.answer(&call, nobody), Ok(reply.clone()));
            for arm in &reply.choices {
                count[ids(&["a", "b", "c"]).iter().position(|a| a == arm).unwrap()] += 1;
            }
        }
        // 4.5 σ of a share of one half over 4,000 draws.
        for share in count.map(|n| f64::from(n) / rounds as f64) {
            assert!(
                (share - 0.5).abs() < 4.5 * 0.5 / 4_000f64.sqrt(),
                "{count:?}"
            );
        }
    }

    #[test]
    fn an_arm_that_is_full_or_down_is_not_drawn_and_is_named() {
        let away = |arm: &ArmId| match arm.as_str() {
            "a" => Some(Reason::Full),
            _ => None,
        };
        let mut sessions = Sessions::new(4);
        for seed in 0..50 {
            let call = full("s", seed, seed, &[0.8, 0.6, 0.6]);
            let reply = sessions.answer(&call, away).unwrap();
            assert_eq!(reply.choices.len(), 2, "all of 0.8 went to the others");
            assert!(!reply.choices.contains(&ids(&["a"])[0]));
            assert_eq!(reply.z, [0.0, 1.0, 1.0]);
            assert_eq!(reply.away[0].reason, Reason::Full);
        }
        let none = sessions.answer(&full("s", 99, 1, &[1.0]), away);
        assert!(matches!(none, Err(Refused::NoArmFree(away)) if away.len() == 1));
    }

    #[test]
    fn what_is_not_held_is_said_and_the_oldest_is_forgotten_first() {
        let mut sessions = Sessions::new(2);
        for name in ["x", "y", "z"] {
            sessions.answer(&full(name, 1, 1, &[1.0]), nobody).unwrap();
        }
        let mut again = |name| sessions.answer(&ScheduleCall::again(name, 2), nobody);
        assert_eq!(again("x"), Err(Refused::UnknownSession));
        assert!(again("y").is_ok() && again("z").is_ok());
    }

    #[test]
    fn questions_that_make_no_sense_are_refused_with_the_field() {
        let field = |call: &ScheduleCall| match Sessions::new(1).answer(call, nobody) {
            Err(Refused::Wrong(field, _)) => field,
            other => panic!("{other:?}"),
        };
        let good = full("s", 3, 1, &[0.5, 0.5]);
        let with = |change: &dyn Fn(&mut ScheduleCall)| {
            let mut call = good.clone();
            change(&mut call);
            field(&call)
        };
        assert_eq!(with(&|c| c.version = 2), "version");
        assert_eq!(with(&|c| c.session = String::new()), "session");
        assert_eq!(with(&|c| c.seed = None), "seed");
        assert_eq!(with(&|c| c.z = Some(vec![0.5])), "arms");
        assert_eq!(with(&|c| c.z = Some(vec![0.5, f64::NAN])), "z");
        assert_eq!(with(&|c| c.z = Some(vec![0.5, 1.5])), "z");
        assert_eq!(with(&|c| c.z = Some(vec![0.0, 0.0])), "z");
        assert_eq!(with(&|c| c.max_arms = Some(0)), "z");
        assert_eq!(with(&|c| c.arms = Some(ids(&["a", "a"]))), "arms");
        let mut sessions = Sessions::new(1);
        sessions.answer(&good, nobody).unwrap();
        let early = sessions.answer(&ScheduleCall::again("s", 2), nobody);
        assert!(matches!(early, Err(Refused::Wrong("sequence", _))));
    }
}
