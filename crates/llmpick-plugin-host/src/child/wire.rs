//! How requests and answers look on the socket between us and a plugin's own process.
//!
//! A frame is a length (4 bytes), a code (4 bytes: the operation, or the status of the answer),
//! and a body. Numbers are little-endian; texts and lists carry their length in front. Both
//! ends are one build of one program, so the format needs no version. What comes from the
//! child is not believed: every length is checked before anything is made of it.

use std::time::Duration;

use llmpick_core::{
    ArmId, Candidate, Feedback, Locality, Mode, Outcome, OutcomeKind, OwnedRequest, RouteId, Score,
    SelectRequest,
};

use crate::instance::RawDecision;

/// What a child may be asked.
pub(super) mod op {
    pub const LOAD: u32 = 1;
    pub const CREATE: u32 = 2;
    pub const SELECT: u32 = 3;
    pub const FEEDBACK: u32 = 4;
    pub const SNAPSHOT: u32 = 5;
    pub const RESTORE: u32 = 6;
    pub const SCORE: u32 = 7;
    pub const DESTROY: u32 = 8;
}

/// Bytes of a frame before its body.
pub(super) const HEAD: usize = 8;

/// A frame that ends too early, or says what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Garbled;

/// A frame that grows. Its buffer is used again.
#[derive(Default)]
pub(super) struct Out {
    bytes: Vec<u8>,
}

impl Out {
    /// Begins a frame.
    pub(super) fn begin(&mut self, code: u32) -> &mut Self {
        self.bytes.clear();
        self.u32(0).u32(code)
    }

    /// The finished frame. Bodies end at 4 GiB; a snapshot is bounded far below.
    pub(super) fn end(&mut self) -> &[u8] {
        let body = (self.bytes.len() - HEAD) as u32;
        self.bytes[..4].copy_from_slice(&body.to_le_bytes());
        &self.bytes
    }

    pub(super) fn u32(&mut self, number: u32) -> &mut Self {
        self.bytes.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn u64(&mut self, number: u64) -> &mut Self {
        self.bytes.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn f64(&mut self, number: f64) -> &mut Self {
        self.u64(number.to_bits())
    }

    pub(super) fn flag(&mut self, flag: bool) -> &mut Self {
        self.bytes.push(u8::from(flag));
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.u64(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    fn floats(&mut self, floats: Option<&[f32]>) -> &mut Self {
        self.flag(floats.is_some());
        let floats = floats.unwrap_or_default();
        self.u64(floats.len() as u64);
        floats.iter().for_each(|x| {
            self.u32(x.to_bits());
        });
        self
    }

    pub(super) fn request(&mut self, request: &SelectRequest<'_>, budget: Duration) -> &mut Self {
        self.u64(request.route_id.0)
            .u64(request.seed)
            .u64(request.arms_epoch)
            .u64(u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX))
            .u64(request.candidates.len() as u64);
        for candidate in request.candidates {
            self.candidate(candidate);
        }
        self.u32(request.allowed_modes.len() as u32);
        for &mode in request.allowed_modes {
            self.u32(crate::instance::mode_bit(mode));
        }
        self.text(request.task).text(request.session);
        self.flag(request.prompt.is_some())
            .text(request.prompt.unwrap_or_default());
        self.floats(request.features);
        self.u32(request.prompt_tokens)
            .u32(request.max_new_tokens)
            .f64(request.max_cost)
            .f64(request.max_latency_ms)
            .f64(request.min_score)
            .f64(request.cost_budget)
            .u32(request.max_arms)
    }

    fn candidate(&mut self, candidate: &Candidate) {
        self.text(candidate.id.as_str())
            .flag(candidate.locality == Locality::Local)
            .flag(candidate.warm)
            .flag(candidate.eligible)
            .u32(candidate.context_tokens)
            .f64(candidate.price_in)
            .f64(candidate.price_out)
            .f64(candidate.est_cost)
            .f64(candidate.cost_max)
            .f64(candidate.latency_ms)
            .f64(candidate.ttft_ms)
            .f64(candidate.score)
            .u64(candidate.n_ok)
            .u64(candidate.n_err)
            .u32(candidate.inflight);
    }

    pub(super) fn feedback(&mut self, feedback: &Feedback) -> &mut Self {
        self.u64(feedback.route_id.0)
            .text(feedback.arm.as_str())
            .u32(feedback.position)
            .u32(match feedback.outcome {
                OutcomeKind::Ok => 1,
                OutcomeKind::Error => 2,
                OutcomeKind::Timeout => 3,
                OutcomeKind::Cancelled => 4,
            })
            .text(&feedback.task)
            .floats(Some(&feedback.features))
            .flag(feedback.fallback)
            .flag(feedback.cold)
            .u32(feedback.prompt_tokens)
            .u32(feedback.completion_tokens)
            .f64(feedback.latency_ms)
            .f64(feedback.ttft_ms)
            .f64(feedback.cost)
            .f64(feedback.score.map_or(f64::NAN, f64::from))
    }

    pub(super) fn decision(&mut self, raw: &RawDecision) -> &mut Self {
        self.u32(raw.mode)
            .u32(raw.choices_len)
            .u32(raw.choices_cap)
            .u64(raw.choices.len() as u64);
        for &choice in &raw.choices {
            self.u32(choice);
        }
        self.f64(raw.propensity).u64(raw.marginals.len() as u64);
        for &marginal in &raw.marginals {
            self.f64(marginal);
        }
        self.text(&raw.reason)
    }

    pub(super) fn outcome(&mut self, outcome: &Outcome, budget: Duration) -> &mut Self {
        self.u64(u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX))
            .flag(outcome.route_id.is_some())
            .u64(outcome.route_id.map_or(0, |id| id.0))
            .text(outcome.arm.as_ref().map_or("", |arm| arm.as_str()))
            .text(&outcome.task)
            .text(&outcome.prompt)
            .text(&outcome.response)
            .flag(outcome.reference.is_some())
            .text(outcome.reference.as_deref().unwrap_or_default())
            .u64(outcome.seed)
    }
}

/// What is left of a frame's body.
pub(super) struct In<'a>(pub &'a [u8]);

impl<'a> In<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Garbled> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Garbled)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Garbled> {
        self.take(N)?.try_into().map_err(|_| Garbled)
    }

    /// A length of things that take at least `each` bytes.
    fn length(&mut self, each: usize) -> Result<usize, Garbled> {
        let length = usize::try_from(self.u64()?).map_err(|_| Garbled)?;
        let fits = length <= self.0.len() / each;
        fits.then_some(length).ok_or(Garbled)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Garbled> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Garbled> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn f64(&mut self) -> Result<f64, Garbled> {
        self.u64().map(f64::from_bits)
    }

    pub(super) fn flag(&mut self) -> Result<bool, Garbled> {
        self.array().map(|[byte]| byte != 0)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Garbled> {
        let length = self.length(1)?;
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Garbled> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Garbled)
    }

    fn optional_text(&mut self) -> Result<Option<String>, Garbled> {
        let some = self.flag()?;
        let text = self.text()?;
        Ok(some.then(|| text.to_owned()))
    }

    fn floats(&mut self) -> Result<Option<Vec<f32>>, Garbled> {
        let some = self.flag()?;
        let length = self.length(4)?;
        let floats = (0..length).map(|_| self.u32().map(f32::from_bits));
        let floats: Vec<f32> = floats.collect::<Result<_, _>>()?;
        Ok(some.then_some(floats))
    }

    /// A request and the time that the plugin is told.
    pub(super) fn request(&mut self) -> Result<(OwnedRequest, Duration), Garbled> {
        let (route_id, seed, arms_epoch) = (RouteId(self.u64()?), self.u64()?, self.u64()?);
        let budget = Duration::from_nanos(self.u64()?);
        let count = self.length(90)?;
        let candidates = (0..count).map(|_| self.candidate());
        let candidates = candidates.collect::<Result<Vec<_>, _>>()?;
        let modes = self.u32()?.min(4);
        let modes = (0..modes).map(|_| self.mode());
        let allowed_modes = modes.collect::<Result<Vec<_>, _>>()?;
        let request = OwnedRequest {
            route_id,
            seed,
            arms_epoch,
            time_budget: budget,
            candidates,
            allowed_modes,
            task: self.text()?.to_owned(),
            session: self.text()?.to_owned(),
            prompt: self.optional_text()?,
            features: self.floats()?,
            prompt_tokens: self.u32()?,
            max_new_tokens: self.u32()?,
            max_cost: self.f64()?,
            max_latency_ms: self.f64()?,
            min_score: self.f64()?,
            cost_budget: self.f64()?,
            max_arms: self.u32()?,
        };
        Ok((request, budget))
    }

    fn mode(&mut self) -> Result<Mode, Garbled> {
        let bit = self.u32()?;
        let all = [Mode::Single, Mode::AnyWin, Mode::SumUp, Mode::AllIn];
        let found = all
            .into_iter()
            .find(|&mode| crate::instance::mode_bit(mode) == bit);
        found.ok_or(Garbled)
    }

    fn candidate(&mut self) -> Result<Candidate, Garbled> {
        Ok(Candidate {
            id: ArmId::new(self.text()?).map_err(|_| Garbled)?,
            locality: match self.flag()? {
                true => Locality::Local,
                false => Locality::Remote,
            },
            warm: self.flag()?,
            eligible: self.flag()?,
            context_tokens: self.u32()?,
            price_in: self.f64()?,
            price_out: self.f64()?,
            est_cost: self.f64()?,
            cost_max: self.f64()?,
            latency_ms: self.f64()?,
            ttft_ms: self.f64()?,
            score: self.f64()?,
            n_ok: self.u64()?,
            n_err: self.u64()?,
            inflight: self.u32()?,
        })
    }

    pub(super) fn feedback(&mut self) -> Result<Feedback, Garbled> {
        Ok(Feedback {
            route_id: RouteId(self.u64()?),
            arm: ArmId::new(self.text()?).map_err(|_| Garbled)?,
            position: self.u32()?,
            outcome: match self.u32()? {
                1 => OutcomeKind::Ok,
                2 => OutcomeKind::Error,
                3 => OutcomeKind::Timeout,
                _ => OutcomeKind::Cancelled,
            },
            task: self.text()?.to_owned(),
            features: self.floats()?.unwrap_or_default(),
            fallback: self.flag()?,
            cold: self.flag()?,
            prompt_tokens: self.u32()?,
            completion_tokens: self.u32()?,
            latency_ms: self.f64()?,
            ttft_ms: self.f64()?,
            cost: self.f64()?,
            score: Score::new(self.f64()?).ok(),
        })
    }

    /// What a router in a child wrote; `candidates` is how many it was asked about.
    pub(super) fn decision(&mut self, candidates: usize) -> Result<RawDecision, Garbled> {
        let (mode, choices_len, choices_cap) = (self.u32()?, self.u32()?, self.u32()?);
        let count = self.length(4)?;
        let choices = (0..count).map(|_| self.u32());
        let choices = choices.collect::<Result<Vec<_>, _>>()?;
        let propensity = self.f64()?;
        let count = self.length(8)?;
        let marginals = (0..count).map(|_| self.f64());
        let marginals = marginals.collect::<Result<Vec<_>, _>>()?;
        let reason = self.text()?.to_owned();
        let honest = choices_cap as usize <= candidates
            && choices.len() == choices_len.min(choices_cap) as usize
            && marginals.len() == candidates
            && reason.len() <= 4 * crate::instance::REASON;
        let raw = RawDecision {
            mode,
            choices_len,
            choices_cap,
            choices,
            propensity,
            marginals,
            reason,
        };
        honest.then_some(raw).ok_or(Garbled)
    }

    /// An outcome and the time that the scorer is told.
    pub(super) fn outcome(&mut self) -> Result<(Outcome, Duration), Garbled> {
        let budget = Duration::from_nanos(self.u64()?);
        let (known, route) = (self.flag()?, self.u64()?);
        let outcome = Outcome {
            route_id: known.then_some(RouteId(route)),
            arm: ArmId::new(self.text()?).ok(),
            task: self.text()?.to_owned(),
            prompt: self.text()?.to_owned(),
            response: self.text()?.to_owned(),
            reference: self.optional_text()?,
            seed: self.u64()?,
            ..Outcome::default()
        };
        Ok((outcome, budget))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says where it failed")]
    use llmpick_testkit::{candidate, select_request};

    use super::*;

    #[test]
    fn a_request_arrives_as_it_was_sent() {
        let arms: Vec<Candidate> = (0..5).map(candidate).collect();
        let request = SelectRequest {
            prompt: Some("why?"),
            features: Some(&[0.5, -1.0]),
            task: "maths",
            ..select_request(&arms, 9)
        };
        let mut out = Out::default();
        let frame = out
            .begin(op::SELECT)
            .request(&request, Duration::from_millis(3))
            .end();
        let (owned, budget) = In(&frame[HEAD..]).request().unwrap();
        assert_eq!(budget, Duration::from_millis(3));
        let got = owned.borrow();
        let sent = SelectRequest {
            time_budget: budget,
            ..request
        };
        // As text, in which NaN is like NaN.
        assert_eq!(format!("{got:?}"), format!("{sent:?}"));
    }

    #[test]
    fn an_answer_that_lies_about_its_lengths_is_garbled() {
        let raw = RawDecision {
            mode: 1,
            choices_len: 1,
            choices_cap: 2,
            choices: vec![3],
            propensity: f64::NAN,
            marginals: vec![0.25; 4],
            reason: "so".to_owned(),
        };
        let read = |raw: &RawDecision, candidates| {
            let mut out = Out::default();
            let frame = out.begin(0).decision(raw).end().to_vec();
            // A frame cut anywhere is garbled and nothing worse.
            for end in HEAD..frame.len() {
                assert_eq!(
                    In(&frame[HEAD..end]).decision(candidates).err(),
                    Some(Garbled)
                );
            }
            In(&frame[HEAD..]).decision(candidates)
        };
        assert_eq!(format!("{:?}", read(&raw, 4).unwrap()), format!("{raw:?}"));
        assert_eq!(
            read(&raw, 3).err(),
            Some(Garbled),
            "more marginals than arms"
        );
        let mut long = raw.clone();
        long.choices = vec![1, 2];
        assert_eq!(
            read(&long, 4).err(),
            Some(Garbled),
            "more choices than it says"
        );
        let huge = [&u64::MAX.to_le_bytes()[..], &[0; 64]].concat();
        assert_eq!(In(&huge).bytes().err(), Some(Garbled));
    }
}
