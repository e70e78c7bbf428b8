//! The mirror against the header: what `cc` says of every struct, field by field, and a
//! golden copy of it, so that any change of the layout shows in a diff.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use llmpick_plugin_abi as abi;

fn size_of_field<T, F>(_: impl Fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// `name size`, then `name.field offset size` for every field.
macro_rules! describe {
    ($rust:ident, $c:literal, $($field:ident),+) => {{
        // Without `..`: a field missing from the list does not compile.
        #[allow(dead_code)]
        fn complete(value: abi::$rust) {
            let abi::$rust { $($field: _),+ } = value;
        }
        let mut lines = format!("{} {}\n", $c, size_of::<abi::$rust>());
        $(
            writeln!(
                lines, "{}.{} {} {}", $c, stringify!($field),
                std::mem::offset_of!(abi::$rust, $field),
                size_of_field(|value: &abi::$rust| &value.$field),
            ).unwrap();
        )+
        lines
    }};
}

fn mirror() -> String {
    [
        describe!(Str, "llmpick_str", ptr, len),
        describe!(Bytes, "llmpick_bytes", ptr, len),
        describe!(Error, "llmpick_error", size, len, msg),
        describe!(
            Host,
            "llmpick_host",
            size,
            abi,
            ctx,
            log,
            max_log_level,
            now_ns,
            config_f64,
            config_i64,
            config_str
        ),
        describe!(Writer, "llmpick_writer", size, reserved, ctx, write),
        describe!(
            Candidate,
            "llmpick_candidate",
            id,
            flags,
            context_tokens,
            price_in,
            price_out,
            est_cost,
            cost_max,
            latency_ms,
            ttft_ms,
            score,
            n_ok,
            n_err,
            inflight,
            reserved
        ),
        describe!(
            SelectReq,
            "llmpick_select_req",
            size,
            allowed_modes,
            request_id,
            seed,
            arms_epoch,
            budget_ns,
            candidates,
            n_candidates,
            candidate_size,
            task,
            session,
            prompt,
            features,
            n_features,
            prompt_tokens,
            max_new_tokens,
            max_cost,
            max_latency_ms,
            min_score,
            cost_budget,
            max_arms,
            reserved
        ),
        describe!(
            Decision,
            "llmpick_decision",
            size,
            mode,
            choices,
            choices_cap,
            choices_len,
            propensity,
            marginals,
            reason,
            reason_cap,
            reason_len
        ),
        describe!(
            Feedback,
            "llmpick_feedback",
            size,
            outcome,
            request_id,
            candidate_id,
            task,
            features,
            n_features,
            flags,
            position,
            prompt_tokens,
            completion_tokens,
            latency_ms,
            ttft_ms,
            cost,
            score
        ),
        describe!(
            RouterVtbl,
            "llmpick_router_vtbl",
            size,
            reserved,
            create,
            destroy,
            select,
            feedback,
            snapshot,
            restore
        ),
        describe!(
            ScoreReq,
            "llmpick_score_req",
            size,
            outcome,
            request_id,
            seed,
            budget_ns,
            candidate_id,
            task,
            prompt,
            response,
            reference
        ),
        describe!(Score, "llmpick_score", size, reserved, value, confidence),
        describe!(
            ScorerVtbl,
            "llmpick_scorer_vtbl",
            size,
            reserved,
            create,
            destroy,
            score
        ),
        describe!(
            Plugin,
            "llmpick_plugin",
            size,
            kind,
            caps,
            name,
            version,
            description,
            config_schema,
            state_version,
            state_version_min,
            vtbl
        ),
        describe!(
            Module,
            "llmpick_module",
            magic,
            size,
            abi,
            abi_min,
            n_plugins,
            plugins,
            built_with
        ),
    ]
    .concat()
}

fn constants() -> String {
    let mut lines = String::new();
    let mut line = |name: &str, value: i64| writeln!(lines, "{name} {value}").unwrap();
    line("LLMPICK_ABI_MAJOR", abi::ABI_MAJOR.into());
    line("LLMPICK_ABI_MINOR", abi::ABI_MINOR.into());
    line("LLMPICK_OK", abi::OK.into());
    line("LLMPICK_E_ABSTAIN", abi::E_ABSTAIN.into());
    line("LLMPICK_E_INVALID", abi::E_INVALID.into());
    line("LLMPICK_E_CONFIG", abi::E_CONFIG.into());
    line("LLMPICK_E_STATE", abi::E_STATE.into());
    line("LLMPICK_E_UNSUPPORTED", abi::E_UNSUPPORTED.into());
    line("LLMPICK_E_INTERNAL", abi::E_INTERNAL.into());
    line("LLMPICK_E_PANIC", abi::E_PANIC.into());
    line("LLMPICK_E_IO", abi::E_IO.into());
    line("LLMPICK_LOG_ERROR", abi::LOG_ERROR.into());
    line("LLMPICK_LOG_WARN", abi::LOG_WARN.into());
    line("LLMPICK_LOG_INFO", abi::LOG_INFO.into());
    line("LLMPICK_LOG_DEBUG", abi::LOG_DEBUG.into());
    line("LLMPICK_LOG_TRACE", abi::LOG_TRACE.into());
    line("LLMPICK_CAND_LOCAL", abi::CAND_LOCAL.into());
    line("LLMPICK_CAND_WARM", abi::CAND_WARM.into());
    line("LLMPICK_CAND_ELIGIBLE", abi::CAND_ELIGIBLE.into());
    line("LLMPICK_MODE_SINGLE", abi::MODE_SINGLE.into());
    line("LLMPICK_MODE_ANY_WIN", abi::MODE_ANY_WIN.into());
    line("LLMPICK_MODE_SUM_UP", abi::MODE_SUM_UP.into());
    line("LLMPICK_MODE_ALL_IN", abi::MODE_ALL_IN.into());
    line("LLMPICK_OUTCOME_OK", abi::OUTCOME_OK.into());
    line("LLMPICK_OUTCOME_ERROR", abi::OUTCOME_ERROR.into());
    line("LLMPICK_OUTCOME_TIMEOUT", abi::OUTCOME_TIMEOUT.into());
    line("LLMPICK_OUTCOME_CANCELLED", abi::OUTCOME_CANCELLED.into());
    line("LLMPICK_FB_FALLBACK", abi::FB_FALLBACK.into());
    line("LLMPICK_FB_COLD", abi::FB_COLD.into());
    line("LLMPICK_KIND_ROUTER", abi::KIND_ROUTER.into());
    line("LLMPICK_KIND_SCORER", abi::KIND_SCORER.into());
    line("LLMPICK_CAP_NEEDS_PROMPT", abi::CAP_NEEDS_PROMPT as i64);
    line("LLMPICK_CAP_NEEDS_FEATURES", abi::CAP_NEEDS_FEATURES as i64);
    line("LLMPICK_CAP_THREAD_SAFE", abi::CAP_THREAD_SAFE as i64);
    line("LLMPICK_CAP_MULTI_SELECT", abi::CAP_MULTI_SELECT as i64);
    lines
}

/// A C program that prints the same lines from the header's point of view.
fn program(layout: &str, constants: &str) -> String {
    let mut body = String::new();
    for name in layout.lines().map(|l| l.split(' ').next().unwrap()) {
        match name.split_once('.') {
            None => writeln!(body, "printf(\"{name} %zu\\n\", sizeof({name}));").unwrap(),
            Some((record, field)) => writeln!(
                body,
                "printf(\"{name} %zu %zu\\n\", offsetof({record}, {field}), \
                 sizeof((({record} *)0)->{field}));"
            )
            .unwrap(),
        }
    }
    for name in constants.lines().map(|l| l.split(' ').next().unwrap()) {
        writeln!(body, "printf(\"{name} %lld\\n\", (long long)({name}));").unwrap();
    }
    format!(
        "#include <stdio.h>\n#include \"llmpick_plugin.h\"\nint main(void) {{\n{body}return 0; }}\n"
    )
}

fn compile_and_run(source: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (c, exe) = (dir.path().join("layout.c"), dir.path().join("layout"));
    std::fs::write(&c, source).unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let cc = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .args([
            include.as_os_str(),
            c.as_os_str(),
            "-o".as_ref(),
            exe.as_os_str(),
        ])
        .output()
        .expect("a C compiler named `cc` is needed to check the header");
    assert!(
        cc.status.success(),
        "{}",
        String::from_utf8_lossy(&cc.stderr)
    );
    let run = Command::new(&exe).output().unwrap();
    assert!(run.status.success());
    String::from_utf8(run.stdout).unwrap()
}

#[test]
fn the_c_compiler_sees_the_layout_that_the_mirror_has() {
    let (layout, constants) = (mirror(), constants());
    let seen = compile_and_run(&program(&layout, &constants));
    assert_eq!(seen, layout + &constants);
}

#[test]
fn the_header_is_valid_cpp() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("header.cc");
    std::fs::write(&source, "#include \"llmpick_plugin.h\"\n").unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let Ok(cxx) = Command::new("c++")
        .args([
            "-std=c++11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsyntax-only",
            "-I",
        ])
        .args([include.as_os_str(), source.as_os_str()])
        .output()
    else {
        println!("skipped: no C++ compiler named `c++`");
        return;
    };
    assert!(
        cxx.status.success(),
        "{}",
        String::from_utf8_lossy(&cxx.stderr)
    );
}

/// Compatibility is held by this file: until the first release a line may be appended to a
/// struct, afterwards the header only grows by the rules at its top. `UPDATE_GOLDEN=1`
/// rewrites it.
#[test]
#[cfg(target_pointer_width = "64")]
fn the_layout_is_the_golden_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layout.golden");
    let now = mirror() + &constants();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    assert_eq!(now, std::fs::read_to_string(&path).unwrap());
}
