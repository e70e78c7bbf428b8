//! Plugins and hosts of different minor versions: fields are only ever appended, and nobody
//! reads beyond what the other side said its structs hold.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]
#![allow(
    unsafe_code,
    reason = "it plays a host of a version that does not exist yet"
)]

mod common;

use std::ffi::c_void;

use camino::Utf8Path;
use common::{Folder, arms, ask, cargo, cc, feedback, load, make, patient};
use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};
use llmpick_core::{Candidate, Locality};
use llmpick_plugin_abi as abi;
use llmpick_plugin_host::Isolation;

/// A struct of version 1.1: what 1.0 has, and fields that 1.0 does not know, full of what a
/// reader of them would trip over.
#[repr(C)]
struct Longer<T> {
    known: T,
    newer: [u64; 5],
}

impl<T> Longer<T> {
    fn new(known: T) -> Self {
        Self {
            known,
            newer: [u64::MAX; 5],
        }
    }

    /// Whoever reads or writes beyond `size` of 1.0 leaves a trace here.
    fn is_untouched(&self) -> bool {
        self.newer == [u64::MAX; 5]
    }
}

const NEWER: u32 = abi::abi(1, 1);

/// A host of version 1.1, as far as a router needs one.
struct Host {
    table: *const abi::RouterVtbl,
    this: *mut c_void,
    _host: Box<Longer<abi::Host>>,
}

unsafe extern "C" fn no_log(_: *mut c_void, _: u32, _: abi::Str) {}
unsafe extern "C" fn quiet(_: *mut c_void) -> u32 {
    0
}
unsafe extern "C" fn no_time(_: *mut c_void) -> u64 {
    0
}
unsafe extern "C" fn no_f64(_: *mut c_void, _: abi::Str, _: *mut f64) -> abi::Status {
    abi::E_ABSTAIN
}
unsafe extern "C" fn no_i64(_: *mut c_void, _: abi::Str, _: *mut i64) -> abi::Status {
    abi::E_ABSTAIN
}
unsafe extern "C" fn no_str(_: *mut c_void, _: abi::Str, _: *mut abi::Str) -> abi::Status {
    abi::E_ABSTAIN
}

fn error() -> Longer<abi::Error> {
    let size = size_of::<Longer<abi::Error>>() as u32;
    Longer::new(abi::Error {
        size,
        ..abi::zeroed()
    })
}

impl Host {
    fn load(path: &Utf8Path) -> Self {
        // SAFETY: a fixture of ours, which stays loaded.
        let handle = unsafe { Handle::open(Some(path.as_str()), RTLD_NOW | RTLD_LOCAL) }.unwrap();
        // SAFETY: the header gives the symbol this type, and the module is static.
        let table = unsafe {
            let entry = *handle.get::<abi::EntryFn>(abi::ENTRY_SYMBOL).unwrap();
            let module = &*entry(NEWER);
            assert_eq!(module.abi, abi::ABI, "a plugin of version 1.0");
            (**module.plugins).vtbl.cast::<abi::RouterVtbl>()
        };
        std::mem::forget(handle);
        let host = Box::new(Longer::new(abi::Host {
            size: size_of::<Longer<abi::Host>>() as u32,
            abi: NEWER,
            ctx: std::ptr::null_mut(),
            log: Some(no_log),
            max_log_level: Some(quiet),
            now_ns: Some(no_time),
            config_f64: Some(no_f64),
            config_i64: Some(no_i64),
            config_str: Some(no_str),
        }));
        let (mut this, mut error) = (std::ptr::null_mut(), error());
        // SAFETY: everything lives through the call, and the host as long as the instance.
        let status = unsafe {
            let create = (*table).create.unwrap();
            let host = (&raw const *host).cast();
            create(
                host,
                abi::Str::new("{}"),
                &mut this,
                (&raw mut error).cast(),
            )
        };
        assert_eq!(status, abi::OK);
        assert!(host.is_untouched() && error.is_untouched());
        Self {
            table,
            this,
            _host: host,
        }
    }

    /// The choice among candidates that are each 40 bytes longer than 1.0 knows.
    fn select(&self, arms: &[Candidate], seed: u64) -> Vec<u32> {
        let candidates: Vec<Longer<abi::Candidate>> =
            arms.iter().map(|arm| Longer::new(wire(arm))).collect();
        let request = Longer::new(abi::SelectReq {
            size: size_of::<Longer<abi::SelectReq>>() as u32,
            // Modes of 1.0, and one that it has never heard of.
            allowed_modes: abi::MODE_SINGLE | abi::MODE_ANY_WIN | 1 << 9,
            request_id: seed,
            seed,
            arms_epoch: 1,
            budget_ns: 1_000_000_000,
            candidates: candidates.as_ptr().cast(),
            n_candidates: candidates.len() as u32,
            candidate_size: size_of::<Longer<abi::Candidate>>() as u32,
            max_arms: 2,
            max_cost: f64::NAN,
            max_latency_ms: f64::NAN,
            min_score: f64::NAN,
            cost_budget: f64::NAN,
            ..abi::zeroed()
        });
        let (mut choices, mut marginals) = (vec![u32::MAX; arms.len()], vec![f64::NAN; arms.len()]);
        let mut reason = [0; 64];
        let mut out = Longer::new(abi::Decision {
            size: size_of::<Longer<abi::Decision>>() as u32,
            choices: choices.as_mut_ptr(),
            choices_cap: 2,
            propensity: f64::NAN,
            marginals: marginals.as_mut_ptr(),
            reason: reason.as_mut_ptr(),
            reason_cap: 64,
            ..abi::zeroed()
        });
        let mut error = error();
        // SAFETY: everything lives through the call, with the room that it says.
        let status = unsafe {
            let select = (*self.table).select.unwrap();
            let out = (&raw mut out).cast();
            select(
                self.this,
                (&raw const request).cast(),
                out,
                (&raw mut error).cast(),
            )
        };
        assert_eq!(status, abi::OK);
        assert!(out.is_untouched() && error.is_untouched());
        choices.truncate(out.known.choices_len as usize);
        choices
    }

    fn feedback(&self, arm: &str, score: f64) {
        let told = Longer::new(abi::Feedback {
            size: size_of::<Longer<abi::Feedback>>() as u32,
            outcome: abi::OUTCOME_OK,
            candidate_id: abi::Str::new(arm),
            score,
            cost: 1e-6,
            ..abi::zeroed()
        });
        let mut error = error();
        // SAFETY: everything lives through the call.
        let status = unsafe {
            let feedback = (*self.table).feedback.unwrap();
            feedback(self.this, (&raw const told).cast(), (&raw mut error).cast())
        };
        assert_eq!(status, abi::OK);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: the instance's last call.
        unsafe { (*self.table).destroy.unwrap()(self.this) };
    }
}

fn wire(arm: &Candidate) -> abi::Candidate {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    abi::Candidate {
        id: abi::Str::new(arm.id.as_str()),
        // A flag that 1.0 does not know is set on all of them.
        flags: flag(arm.locality == Locality::Local, abi::CAND_LOCAL)
            | flag(arm.warm, abi::CAND_WARM)
            | flag(arm.eligible, abi::CAND_ELIGIBLE)
            | 1 << 20,
        est_cost: arm.est_cost,
        score: arm.score,
        ..abi::zeroed()
    }
}

#[test]
fn a_plugin_of_today_works_under_a_host_of_tomorrow() {
    let folder = Folder::new();
    let moody = cc(&folder, "tests/plugins/moody.c", "moody.so", &[]);
    let today = load(&moody);
    let (mut here, newer) = (
        make(&today, "moody", "", &patient(Isolation::Inline)),
        Host::load(&moody),
    );
    for (route, arm, score) in [(1, 0, 0.2), (2, 1, 0.8), (3, 2, 0.9), (4, 1, 0.1)] {
        assert_eq!(newer.select(&arms(), route), ask(&mut *here, route).choices);
        here.feedback(&feedback(route, arm, score)).unwrap();
        newer.feedback(&format!("arm-{arm}"), score);
    }
    assert_eq!(newer.select(&arms(), 9), [2]);
    // The same through the SDK of today: it chooses by what it has seen, and by the seed.
    let newer = Host::load(&cargo("tests/plugins/panics", "libpanics.so"));
    for seen in 0..4 {
        for seed in 0..6 {
            assert_eq!(newer.select(&arms(), seed), [((seen + seed) % 3) as u32]);
        }
        newer.feedback("arm-0", 0.5);
    }
}

#[test]
fn a_plugin_of_tomorrow_that_says_it_runs_here_does() {
    let folder = Folder::new();
    let flags = ["-DFAULT=LONGER"];
    let library = load(&cc(&folder, "tests/plugins/module.c", "newer.so", &flags));
    assert_eq!(library.abi(), (1, 9));
    assert_eq!(library.plugins().len(), 1);
    assert_eq!(library.plugins()[0].version, "1.2.3");
    for isolation in [Isolation::Inline, Isolation::Actor] {
        let mut router = make(&library, "first", "", &patient(isolation));
        assert_eq!(ask(&mut *router, 1).choices, [0]);
        assert_eq!(common::why(&ask(&mut *router, 2).source), "");
    }
}
