//! The exported symbol, called as a C host calls it: through pointers only.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    reason = "this test plays the C side"
)]

use std::ffi::c_void;

use llmpick_plugin_abi as abi;
use llmpick_plugin_sdk::{
    Choice, Error, Feedback, Host, Result, RouterPlugin, Score, ScoreRequest, ScorerPlugin,
    SelectRequest, export_plugins, from_json, to_json,
};

/// Chooses what was rewarded last; panics on demand.
struct Follower {
    last: Option<String>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct FollowerConfig {
    refuse: bool,
    panic: bool,
}

/// A panic payload whose own drop panics.
struct Nasty;
impl Drop for Nasty {
    fn drop(&mut self) {
        panic!("and again");
    }
}

impl RouterPlugin for Follower {
    type Config = FollowerConfig;
    const NAME: &'static str = "follower";
    const STATE_VERSION: u32 = 3;
    const STATE_VERSION_MIN: u32 = 2;

    fn create(config: FollowerConfig, _host: Host) -> Result<Self> {
        assert!(!config.panic, "asked to panic");
        if config.refuse {
            return Err(Error::config("refused as asked"));
        }
        Ok(Self { last: None })
    }

    fn select(&mut self, request: &SelectRequest<'_>, choice: &mut Choice<'_>) -> Result<()> {
        if request.task == "panic" {
            std::panic::panic_any(Nasty);
        }
        let id = |c: &&llmpick_plugin_sdk::Candidate<'_>| self.last.as_deref() == Some(c.id);
        match request.eligible().find(id).or(request.eligible().next()) {
            Some(one) => choice
                .choose(one.index)
                .marginal(one.index, 1.0)
                .reason("followed"),
            None => choice.abstain(),
        };
        Ok(())
    }

    fn feedback(&mut self, feedback: &Feedback<'_>) -> Result<()> {
        if feedback.score > Some(0.5) {
            self.last = Some(feedback.candidate_id.to_owned());
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        to_json(&self.last)
    }

    fn restore(&mut self, _version: u32, state: &[u8]) -> Result<()> {
        self.last = from_json(state)?;
        Ok(())
    }
}

struct Same;
impl ScorerPlugin for Same {
    type Config = ();
    const NAME: &'static str = "same";
    fn create((): (), _host: Host) -> Result<Self> {
        Ok(Self)
    }
    fn score(&mut self, request: &ScoreRequest<'_>) -> Result<Score> {
        Score::new(f64::from(u8::from(request.response == request.reference)))
    }
}

export_plugins!(router Follower, scorer Same);

unsafe extern "C" {
    fn llmpick_plugin_entry(host_abi: u32) -> *const abi::Module;
}

fn plugin(index: usize) -> abi::Plugin {
    // SAFETY: the entry returns our own static module.
    unsafe {
        let module = abi::read_prefix(llmpick_plugin_entry(abi::ABI), size_of::<abi::Module>());
        assert_eq!((module.magic, module.n_plugins), (abi::MAGIC, 2));
        abi::read_sized(*module.plugins.add(index))
    }
}

fn table() -> abi::RouterVtbl {
    // SAFETY: plugin 0 is a router.
    unsafe { abi::read_sized(plugin(0).vtbl.cast()) }
}

fn error() -> abi::Error {
    abi::Error {
        size: size_of::<abi::Error>() as u32,
        ..abi::zeroed()
    }
}

fn sentence(error: &abi::Error) -> String {
    let bytes: Vec<u8> = error.msg[..error.len as usize]
        .iter()
        .map(|&c| c as u8)
        .collect();
    String::from_utf8(bytes).unwrap()
}

/// Creates a follower: the instance, or the status and the sentence.
fn create(config: &str) -> std::result::Result<*mut c_void, (abi::Status, String)> {
    let host = abi::Host {
        size: size_of::<abi::Host>() as u32,
        abi: abi::ABI,
        ..abi::zeroed()
    };
    let (mut this, mut err) = (std::ptr::null_mut(), error());
    // SAFETY: all pointers live through the call.
    match unsafe { table().create.unwrap()(&host, abi::Str::new(config), &mut this, &mut err) } {
        abi::OK => Ok(this),
        status => Err((status, sentence(&err))),
    }
}

/// A newer host's candidate: the stride is larger than the struct the SDK knows.
#[repr(C)]
#[derive(Clone, Copy)]
struct LongCandidate {
    known: abi::Candidate,
    newer: [u64; 3],
}

/// Asks for a choice among `ids`; answers status, choice, mode, marginals, text.
fn select(this: *mut c_void, ids: &[&str], task: &str) -> (abi::Status, Vec<u32>, u32, String) {
    let candidates: Vec<LongCandidate> = ids
        .iter()
        .map(|id| LongCandidate {
            known: abi::Candidate {
                id: abi::Str::new(id),
                flags: abi::CAND_ELIGIBLE,
                ..abi::zeroed()
            },
            newer: [u64::MAX; 3],
        })
        .collect();
    let request = abi::SelectReq {
        size: size_of::<abi::SelectReq>() as u32,
        allowed_modes: abi::MODE_SINGLE | abi::MODE_ANY_WIN,
        candidates: candidates.as_ptr().cast(),
        n_candidates: ids.len() as u32,
        candidate_size: size_of::<LongCandidate>() as u32,
        task: abi::Str::new(task),
        max_arms: 1,
        ..abi::zeroed()
    };
    let (mut choices, mut marginals, mut reason) = (vec![9; 4], vec![9.0; ids.len()], [0u8; 5]);
    let mut out = abi::Decision {
        size: size_of::<abi::Decision>() as u32,
        choices: choices.as_mut_ptr(),
        choices_cap: 1,
        marginals: marginals.as_mut_ptr(),
        reason: reason.as_mut_ptr().cast(),
        reason_cap: reason.len() as u32,
        ..abi::zeroed()
    };
    let mut err = error();
    // SAFETY: all pointers live through the call.
    let status = unsafe { table().select.unwrap()(this, &request, &mut out, &mut err) };
    let note = match status {
        abi::OK => String::from_utf8(reason[..out.reason_len as usize].to_vec()).unwrap(),
        _ => sentence(&err),
    };
    choices.truncate(out.choices_len as usize);
    (status, choices, out.mode, note)
}

fn reward(this: *mut c_void, id: &str) {
    let feedback = abi::Feedback {
        size: size_of::<abi::Feedback>() as u32,
        outcome: abi::OUTCOME_OK,
        candidate_id: abi::Str::new(id),
        score: 0.9,
        ..abi::zeroed()
    };
    // SAFETY: all pointers live through the call.
    let status = unsafe { table().feedback.unwrap()(this, &feedback, &mut error()) };
    assert_eq!(status, abi::OK);
}

unsafe extern "C" fn collect(ctx: *mut c_void, ptr: *const u8, len: usize) -> abi::Status {
    // SAFETY: `ctx` is the vector below, `ptr` the plugin's bytes.
    unsafe { (*ctx.cast::<Vec<u8>>()).extend_from_slice(std::slice::from_raw_parts(ptr, len)) };
    abi::OK
}

fn snapshot(this: *mut c_void) -> Vec<u8> {
    let mut state = Vec::<u8>::new();
    let writer = abi::Writer {
        size: size_of::<abi::Writer>() as u32,
        reserved: 0,
        ctx: (&raw mut state).cast(),
        write: Some(collect),
    };
    // SAFETY: all pointers live through the call.
    let status = unsafe { table().snapshot.unwrap()(this, &writer, &mut error()) };
    assert_eq!(status, abi::OK);
    state
}

fn restore(this: *mut c_void, version: u32, state: &[u8]) -> (abi::Status, String) {
    let bytes = abi::Bytes {
        ptr: state.as_ptr(),
        len: state.len(),
    };
    let mut err = error();
    // SAFETY: all pointers live through the call.
    let status = unsafe { table().restore.unwrap()(this, version, bytes, &mut err) };
    (status, sentence(&err))
}

fn destroy(this: *mut c_void) {
    // SAFETY: made by `create`, used no more.
    unsafe { table().destroy.unwrap()(this) };
}

#[test]
fn it_chooses_learns_and_carries_its_state_over() {
    let first = create("").unwrap();
    let ids = ["a", "b", "c"];
    // The reason is cut to the host's five bytes.
    assert_eq!(
        select(first, &ids, ""),
        (abi::OK, vec![0], abi::MODE_SINGLE, "follo".into())
    );
    reward(first, "c");
    assert_eq!(select(first, &ids, "").1, [2]);
    let second = create("{}").unwrap();
    assert_eq!(restore(second, 3, &snapshot(first)).0, abi::OK);
    assert_eq!(select(second, &ids, "").1, [2]);
    for (version, state) in [(1, &b"null"[..]), (4, b"null"), (3, b"[garbage")] {
        let (status, why) = restore(second, version, state);
        assert_eq!(status, abi::E_STATE, "{why}");
        assert!(!why.is_empty());
    }
    assert_eq!(
        select(second, &ids, "").1,
        [2],
        "a refused state changes nothing"
    );
    assert_eq!(select(second, &[], "").0, abi::E_ABSTAIN);
    destroy(first);
    destroy(second);
}

#[test]
fn a_bad_configuration_is_refused_with_a_sentence() {
    let (status, why) = create(r#"{"refuse": true}"#).unwrap_err();
    assert_eq!((status, why.as_str()), (abi::E_CONFIG, "refused as asked"));
    let (status, why) = create(r#"{"refuze": true}"#).unwrap_err();
    assert_eq!(status, abi::E_CONFIG);
    assert!(why.contains("unknown field `refuze`"), "{why}");
    let (status, why) = create(r#"{"panic": true}"#).unwrap_err();
    assert_eq!(
        (status, why.as_str()),
        (abi::E_PANIC, "panicked: asked to panic")
    );
}

#[test]
fn a_panic_is_contained_and_poisons_the_instance() {
    let this = create("").unwrap();
    let (status, _, _, why) = select(this, &["a"], "panic");
    assert_eq!(
        (status, why.as_str()),
        (abi::E_PANIC, "panicked: no message")
    );
    let (status, _, _, why) = select(this, &["a"], "");
    assert_eq!(
        (status, why.as_str()),
        (abi::E_PANIC, "poisoned by an earlier panic")
    );
    destroy(this);
}

#[test]
fn a_host_of_another_major_gets_nothing() {
    // SAFETY: the entry takes any number.
    assert!(unsafe { llmpick_plugin_entry(abi::abi(2, 0)) }.is_null());
    // SAFETY: as above.
    assert!(!unsafe { llmpick_plugin_entry(abi::abi(1, 7)) }.is_null());
}

#[test]
fn a_scorer_grades() {
    // SAFETY: plugin 1 is a scorer, and all pointers live through their calls.
    unsafe {
        let table: abi::ScorerVtbl = abi::read_sized(plugin(1).vtbl.cast());
        let host = abi::Host {
            size: size_of::<abi::Host>() as u32,
            ..abi::zeroed()
        };
        let mut this = std::ptr::null_mut();
        let status = table.create.unwrap()(&host, abi::Str::new("{}"), &mut this, &mut error());
        assert_eq!(status, abi::OK);
        for (response, expected) in [("4", 1.0), ("5", 0.0)] {
            let request = abi::ScoreReq {
                size: size_of::<abi::ScoreReq>() as u32,
                response: abi::Str::new(response),
                reference: abi::Str::new("4"),
                ..abi::zeroed()
            };
            let mut score = abi::Score {
                size: size_of::<abi::Score>() as u32,
                value: 9.0,
                ..abi::zeroed()
            };
            let status = table.score.unwrap()(this, &request, &mut score, &mut error());
            assert_eq!((status, score.value), (abi::OK, expected));
            assert!(score.confidence.is_nan());
        }
        table.destroy.unwrap()(this);
    }
}
