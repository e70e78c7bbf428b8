//! What a router answers.

use std::fmt::{Display, Write as _};

use llmpick_plugin_abi as abi;

use crate::error::cut;
use crate::{Error, Mode, Modes, Result, SelectRequest, caps};

/// The answer a [`Choice`] fills; a unit test reads it.
///
/// ```
/// use llmpick_plugin_sdk::{Candidate, Choice, Mode, Plan, SelectRequest};
///
/// let arm = |index| Candidate { index, eligible: true, ..Default::default() };
/// let request = SelectRequest { candidates: vec![arm(0), arm(1)], ..Default::default() };
/// let mut plan = Plan::default();
/// Choice::new(&mut plan, &request).choose(1).reason("the second");
/// assert_eq!(plan.choices, [1]);
/// assert_eq!(plan.reason, "the second");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Indexes of the chosen candidates, in order.
    pub choices: Vec<usize>,
    /// How they work together; `None` for the simplest allowed mode that fits.
    pub mode: Option<Mode>,
    /// P(this set was chosen).
    pub propensity: Option<f64>,
    /// P(arm runs), one per candidate, NaN where unknown; empty if none is known.
    pub marginals: Vec<f64>,
    /// A note for people.
    pub reason: String,
    /// No opinion.
    pub abstained: bool,
    /// The host shall draw the set from the marginals.
    pub round_for_me: bool,
    invalid: Option<String>,
}

/// Where a router writes its choice. Methods chain.
///
/// ```
/// use llmpick_plugin_sdk::{Choice, Plan, SelectRequest};
///
/// let mut plan = Plan::default();
/// Choice::new(&mut plan, &SelectRequest::default()).abstain();
/// assert!(plan.abstained);
/// ```
#[derive(Debug)]
pub struct Choice<'a> {
    plan: &'a mut Plan,
    candidates: usize,
}

impl<'a> Choice<'a> {
    /// A fresh choice for `request`, written to `plan`; for unit tests.
    pub fn new(plan: &'a mut Plan, request: &SelectRequest<'_>) -> Self {
        plan.clear();
        Self {
            plan,
            candidates: request.candidates.len(),
        }
    }

    /// Chooses one arm.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::{Candidate, Choice, Mode, Plan, SelectRequest};
    /// # let request = SelectRequest { candidates: vec![Candidate::default(); 3], ..Default::default() };
    /// # let mut plan = Plan::default();
    /// # let mut choice = Choice::new(&mut plan, &request);
    /// choice.choose(2);
    /// assert_eq!(plan.choices, [2]);
    /// ```
    pub fn choose(&mut self, index: usize) -> &mut Self {
        self.order([index])
    }

    /// Chooses several arms, first to run first. More than one needs the capability
    /// `MULTI_SELECT`.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::{Candidate, Choice, Mode, Plan, SelectRequest};
    /// # let request = SelectRequest { candidates: vec![Candidate::default(); 3], ..Default::default() };
    /// # let mut plan = Plan::default();
    /// # let mut choice = Choice::new(&mut plan, &request);
    /// choice.order([2, 0]);
    /// assert_eq!(plan.choices, [2, 0]);
    /// ```
    pub fn order(&mut self, indexes: impl IntoIterator<Item = usize>) -> &mut Self {
        self.plan.choices.clear();
        for index in indexes {
            self.known(index);
            self.plan.choices.push(index);
        }
        self
    }

    /// Says how the chosen arms work together. Without it: `Single` for one arm, the first
    /// other allowed mode for several.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::{Candidate, Choice, Mode, Plan, SelectRequest};
    /// # let request = SelectRequest { candidates: vec![Candidate::default(); 3], ..Default::default() };
    /// # let mut plan = Plan::default();
    /// # let mut choice = Choice::new(&mut plan, &request);
    /// choice.order([2, 0]).mode(Mode::AnyWin);
    /// assert_eq!(plan.mode, Some(Mode::AnyWin));
    /// ```
    pub fn mode(&mut self, mode: Mode) -> &mut Self {
        self.plan.mode = Some(mode);
        self
    }

    /// Says how likely this very set was.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::{Candidate, Choice, Mode, Plan, SelectRequest};
    /// # let request = SelectRequest { candidates: vec![Candidate::default(); 3], ..Default::default() };
    /// # let mut plan = Plan::default();
    /// # let mut choice = Choice::new(&mut plan, &request);
    /// choice.choose(2).propensity(0.25);
    /// assert_eq!(plan.propensity, Some(0.25));
    /// ```
    pub fn propensity(&mut self, probability: f64) -> &mut Self {
        self.plan.propensity = Some(probability);
        self
    }

    /// Says how likely it was that the arm runs. Logged, for off-policy evaluation.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::{Candidate, Choice, Mode, Plan, SelectRequest};
    /// # let request = SelectRequest { candidates: vec![Candidate::default(); 3], ..Default::default() };
    /// # let mut plan = Plan::default();
    /// # let mut choice = Choice::new(&mut plan, &request);
    /// choice.choose(2).marginal(0, 0.1).marginal(1, 0.1).marginal(2, 0.8);
    /// assert_eq!(plan.marginals, [0.1, 0.1, 0.8]);
    /// ```
    pub fn marginal(&mut self, index: usize, probability: f64) -> &mut Self {
        if self.plan.marginals.len() != self.candidates {
            self.plan.marginals.resize(self.candidates, f64::NAN);
        }
        match self.plan.marginals.get_mut(index) {
            Some(marginal) => *marginal = probability,
            None => self.known(index),
        }
        self
    }

    /// Says a few words about why.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::{Candidate, Choice, Mode, Plan, SelectRequest};
    /// # let request = SelectRequest { candidates: vec![Candidate::default(); 3], ..Default::default() };
    /// # let mut plan = Plan::default();
    /// # let mut choice = Choice::new(&mut plan, &request);
    /// choice.choose(2).reason(format_args!("mean {:.2}", 0.75));
    /// assert_eq!(plan.reason, "mean 0.75");
    /// ```
    pub fn reason(&mut self, note: impl Display) -> &mut Self {
        self.plan.reason.clear();
        // Writing to a `String` fails only if the note's own `Display` does.
        let _ = write!(self.plan.reason, "{note}");
        self
    }

    /// Has no opinion: the host decides, and it is no fault.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::{Candidate, Choice, Mode, Plan, SelectRequest};
    /// # let request = SelectRequest { candidates: vec![Candidate::default(); 3], ..Default::default() };
    /// # let mut plan = Plan::default();
    /// # let mut choice = Choice::new(&mut plan, &request);
    /// choice.abstain();
    /// assert!(plan.abstained);
    /// ```
    pub fn abstain(&mut self) -> &mut Self {
        self.plan.abstained = true;
        self
    }

    /// Lets the host (or a remote scheduler) draw the set from the marginals, so that only
    /// they leave this machine.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::{Candidate, Choice, Mode, Plan, SelectRequest};
    /// # let request = SelectRequest { candidates: vec![Candidate::default(); 3], ..Default::default() };
    /// # let mut plan = Plan::default();
    /// # let mut choice = Choice::new(&mut plan, &request);
    /// choice.marginal(0, 0.5).marginal(1, 0.5).marginal(2, 1.0).round_for_me();
    /// assert!(plan.round_for_me && plan.choices.is_empty());
    /// ```
    pub fn round_for_me(&mut self) -> &mut Self {
        self.plan.round_for_me = true;
        self.plan.choices.clear();
        self
    }

    fn known(&mut self, index: usize) {
        if index >= self.candidates {
            self.plan.invalid = Some(format!(
                "chose candidate {index} of {} candidates",
                self.candidates
            ));
        }
    }
}

impl Plan {
    fn clear(&mut self) {
        self.choices.clear();
        self.marginals.clear();
        self.reason.clear();
        self.mode = None;
        self.propensity = None;
        self.abstained = false;
        self.round_for_me = false;
        self.invalid = None;
    }

    fn check(&self, plugin_caps: u64) -> Result<()> {
        if self.abstained {
            return Err(Error::abstain());
        }
        if let Some(why) = &self.invalid {
            return Err(Error::internal(why.clone()));
        }
        if self.choices.is_empty() && !self.round_for_me {
            return Err(Error::internal("chose nothing and did not abstain"));
        }
        if self.choices.len() > 1 && plugin_caps & caps::MULTI_SELECT == 0 {
            return Err(Error::internal(
                "chose several arms without the capability MULTI_SELECT",
            ));
        }
        if self.round_for_me && self.marginals.is_empty() {
            return Err(Error::internal("asked the host to round no marginals"));
        }
        Ok(())
    }

    fn mode_for(&self, allowed: Modes) -> Mode {
        let several = self.round_for_me || self.choices.len() > 1;
        self.mode
            .or_else(|| {
                allowed
                    .iter()
                    .find(|&mode| (mode == Mode::Single) != several)
            })
            .or_else(|| allowed.iter().next())
            .unwrap_or(Mode::Single)
    }

    /// Writes the plan into the host's buffers.
    ///
    /// # Safety
    /// `out` is NULL or the decision that belongs to `request`, with buffers as it says.
    pub(crate) unsafe fn write(
        &self,
        request: &SelectRequest<'_>,
        plugin_caps: u64,
        out: *mut abi::Decision,
    ) -> Result<()> {
        self.check(plugin_caps)?;
        if out.is_null() {
            return Err(Error::invalid("the host passed no decision to fill"));
        }
        // SAFETY: not NULL, and a struct that says its own size.
        let host = unsafe { abi::read_sized(out.cast_const()) };
        if (host.size as usize) < size_of::<abi::Decision>() {
            return Err(Error::invalid("the host's decision struct is too short"));
        }
        if self.choices.len() > host.choices_cap as usize || host.choices.is_null() {
            return Err(Error::internal(format!(
                "chose {} arms where {} may run",
                self.choices.len(),
                host.choices_cap
            )));
        }
        let reason = cut(&self.reason, host.reason_cap as usize);
        // SAFETY: `size` covers every field; `choices` has room by the check above,
        // `marginals` has one place per candidate, `reason` was cut to its room.
        unsafe {
            for (place, &index) in self.choices.iter().enumerate() {
                host.choices.add(place).write(index as u32);
            }
            if !host.marginals.is_null() {
                for index in 0..request.candidates.len() {
                    let marginal = self.marginals.get(index).copied().unwrap_or(f64::NAN);
                    host.marginals.add(index).write(marginal);
                }
            }
            if !host.reason.is_null() {
                let to = host.reason.cast::<u8>();
                std::ptr::copy_nonoverlapping(reason.as_ptr(), to, reason.len());
                (&raw mut (*out).reason_len).write(reason.len() as u32);
            }
            (&raw mut (*out).mode).write(self.mode_for(request.allowed_modes).bit());
            (&raw mut (*out).choices_len).write(self.choices.len() as u32);
            (&raw mut (*out).propensity).write(self.propensity.unwrap_or(f64::NAN));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(candidates: usize, fill: impl FnOnce(&mut Choice<'_>)) -> Plan {
        let request = SelectRequest {
            candidates: vec![crate::Candidate::default(); candidates],
            ..Default::default()
        };
        let mut plan = Plan::default();
        fill(&mut Choice::new(&mut plan, &request));
        plan
    }

    #[test]
    fn the_mode_follows_from_the_number_of_arms() {
        let mode = |plan: Plan, allowed: &[Mode]| plan.mode_for(allowed.iter().copied().collect());
        let one = || {
            plan_of(3, |c| {
                c.choose(1);
            })
        };
        let two = || {
            plan_of(3, |c| {
                c.order([2, 0]);
            })
        };
        assert_eq!(mode(one(), &Mode::ALL), Mode::Single);
        assert_eq!(mode(one(), &[Mode::SumUp]), Mode::SumUp);
        assert_eq!(mode(two(), &Mode::ALL), Mode::AnyWin);
        assert_eq!(mode(two(), &[Mode::Single]), Mode::Single);
        let said = plan_of(3, |c| {
            c.order([2, 0]).mode(Mode::AllIn);
        });
        assert_eq!(mode(said, &Mode::ALL), Mode::AllIn);
    }

    #[test]
    fn a_choice_that_makes_no_sense_is_refused_with_a_sentence() {
        let why = |plan: Plan| plan.check(0).map_err(|e| e.to_string());
        assert_eq!(
            why(plan_of(2, |c| {
                c.choose(2);
            })),
            Err("chose candidate 2 of 2 candidates".into())
        );
        assert_eq!(
            why(plan_of(2, |_| ())),
            Err("chose nothing and did not abstain".into())
        );
        assert_eq!(
            why(plan_of(2, |c| {
                c.order([0, 1]);
            })),
            Err("chose several arms without the capability MULTI_SELECT".into())
        );
        assert_eq!(
            why(plan_of(2, |c| {
                c.round_for_me();
            })),
            Err("asked the host to round no marginals".into())
        );
        assert_eq!(
            why(plan_of(2, |c| {
                c.choose(1).marginal(1, 0.5);
            })),
            Ok(())
        );
    }
}
