//! A second router beside the first, on live traffic and without effect.
//!
//! It is asked what the first was asked, knowing what the first knew: the same seed, and the
//! ledger's rows up to the same one. It runs on a thread of its own behind a short queue, so that
//! whatever it does (break, stall, panic), nobody waits for it; where it cannot keep up, requests
//! pass it by.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use llmpick_core::{DecisionSource, OwnedRequest, Router, RouterNeeds, SelectRequest};
use llmpick_ledger::{Ledger, LedgerError, ShadowRecord};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::fallback;
use crate::learner::Learner;

/// How long the end of the program waits for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Requests that may wait for it.
const QUEUE: usize = 64;

/// The handle of a running shadow. Dropping it ends the shadow after what waits.
pub(crate) struct Shadow {
    needs: RouterNeeds,
    questions: SyncSender<Question>,
    /// Questions that it has not answered.
    pending: watch::Sender<usize>,
}

/// What the first router was asked, kept for the second.
struct Question {
    request: OwnedRequest,
    /// The last row that the first router had learnt.
    learnt: u64,
}

impl Shadow {
    /// Starts a shadow. It learns on its thread what the ledger holds already; it keeps no
    /// snapshot, since the router that serves may have the same name.
    pub(crate) fn start(router: Box<dyn Router>, ledger: Arc<Ledger>) -> std::io::Result<Self> {
        let learner = Learner::fresh(router);
        let needs = learner.needs();
        let (questions, waiting) = sync_channel(QUEUE);
        let pending = watch::Sender::new(0);
        let answered = pending.clone();
        std::thread::Builder::new()
            .name("shadow".into())
            .spawn(move || answer(learner, &ledger, &waiting, &answered))?;
        Ok(Self {
            needs,
            questions,
            pending,
        })
    }

    /// How many questions it has not answered.
    pub(crate) fn pending(&self) -> watch::Receiver<usize> {
        self.pending.subscribe()
    }

    /// True where it has to be shown the prompt.
    pub(crate) fn needs_prompt(&self) -> bool {
        self.needs.prompt
    }

    /// Hands it a copy of a question. `prompt` is the request's text, if it needs that.
    pub(crate) fn ask(&self, select: &SelectRequest<'_>, prompt: Option<String>, learnt: u64) {
        let mut request = OwnedRequest::default();
        request.assign(select);
        request.prompt = prompt;
        let question = Question { request, learnt };
        self.pending.send_modify(|pending| *pending += 1);
        if self.questions.try_send(question).is_err() {
            self.pending.send_modify(|pending| *pending -= 1);
            debug!(route = %select.route_id, "shadow was passed by");
        }
    }
}

/// Resolves when a shadow has answered everything, or after a while: a program's end waits for no
/// plugin.
pub(crate) async fn settled(mut pending: watch::Receiver<usize>) {
    let answered = pending.wait_for(|pending| *pending == 0);
    let _ = tokio::time::timeout(PATIENCE, answered).await;
}

/// The shadow's thread: one question after the other, until nobody asks any more.
fn answer(
    mut learner: Learner,
    ledger: &Ledger,
    waiting: &Receiver<Question>,
    pending: &watch::Sender<usize>,
) {
    while let Ok(question) = waiting.recv() {
        if let Err(error) = one(&mut learner, ledger, &question) {
            warn!(route = %question.request.route_id, %error, "shadow was not recorded");
        }
        pending.send_modify(|pending| *pending -= 1);
    }
}

fn one(learner: &mut Learner, ledger: &Ledger, question: &Question) -> Result<(), LedgerError> {
    learner.catch_up_to(ledger, question.learnt)?;
    let select = question.request.borrow();
    let decided = learner
        .select(&select)
        .map_err(|error| error.to_string())
        .and_then(|decision| {
            let (modes, most) = (select.allowed_modes, select.max_arms);
            fallback::check(&decision, select.candidates, modes, most).map(|()| decision)
        })
        .and_then(|decision| match decision.source {
            // The host's fallback answered in its place.
            DecisionSource::Fallback(why) => Err(why),
            _ => Ok(decision),
        });
    let router = learner.name().to_owned();
    let record = match decided {
        Ok(decision) => ShadowRecord {
            router,
            choices: decision.choices,
            mode: Some(decision.mode),
            propensity: decision.propensity,
            marginals: decision.marginals,
            reason: decision.reason,
            error: None,
        },
        Err(error) => ShadowRecord {
            router,
            choices: Vec::new(),
            mode: None,
            propensity: f64::NAN,
            marginals: Vec::new(),
            reason: String::new(),
            error: Some(error),
        },
    };
    ledger.record_shadow(question.request.route_id, &record)
}
