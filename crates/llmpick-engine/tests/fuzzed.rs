//! The fuzz targets, driven by plain mutations of good inputs: what `fuzz/` does with
//! coverage and for longer, here on every run and on every toolchain.
//!
//! `LLMPICK_FUZZ_SECONDS=600` makes each target run so long instead of its fixed count, from
//! a seed that it prints. `LLMPICK_FUZZ_KEEP=1` keeps each input before it runs, as
//! `llmpick-fuzz-NAME` in the folder for temporary files.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use common::tiny::Tiny;
use llmpick_engine::fuzz;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

/// Runs `target` on mutations of `seeds` until `count` of them, or the time asked for.
fn drive(name: &str, seeds: &[Vec<u8>], count: usize, target: fn(&[u8])) {
    let seconds: Option<u64> = std::env::var("LLMPICK_FUZZ_SECONDS")
        .ok()
        .map(|text| text.parse().unwrap());
    let seed = match seconds {
        None => 1,
        Some(_) => rand::random(),
    };
    // What overflows the stack or the memory leaves no time to keep it afterwards.
    let keep = std::env::var_os("LLMPICK_FUZZ_KEEP").is_some();
    let until = seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let mut random = Pcg64::seed_from_u64(seed);
    for good in seeds {
        target(good);
    }
    let mut done = 0;
    while until.map_or(done < count, |until| Instant::now() < until) {
        let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
        for _ in 0..random.random_range(1..6) {
            mutate(&mut bytes, seeds, &mut random);
        }
        // What made a target panic is worth keeping, and a panic's message has no room
        // for it.
        if keep {
            std::fs::write(
                std::env::temp_dir().join(format!("llmpick-fuzz-{name}")),
                &bytes,
            )
            .unwrap();
        }
        let result = std::panic::catch_unwind(|| target(&bytes));
        if let Err(panic) = result {
            let path = std::env::temp_dir().join(format!("llmpick-fuzz-{name}-{seed}-{done}"));
            std::fs::write(&path, &bytes).unwrap();
            eprintln!(
                "{name}: input {done} of seed {seed} is in {}",
                path.display()
            );
            std::panic::resume_unwind(panic);
        }
        done += 1;
    }
    eprintln!("{name}: {done} inputs, seed {seed}");
}

/// One change, of the kinds that break readers: bits, numbers at their limits, parts
/// dropped, doubled, or taken from elsewhere.
fn mutate(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Pcg64) {
    if bytes.is_empty() {
        bytes.push(random.random());
        return;
    }
    // The front of a file is where its structure is.
    let reach = match random.random_range(0..3) {
        0 => bytes.len(),
        _ => bytes.len().min(6000),
    };
    let at = random.random_range(0..reach);
    match random.random_range(0..8) {
        0 => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes[at] = random.random(),
        2 | 3 => {
            let limits = [
                0u64,
                1,
                2,
                255,
                1 << 31,
                u64::from(u32::MAX),
                1 << 63,
                u64::MAX,
            ];
            let number = limits[random.random_range(0..limits.len())];
            let width = [1, 4, 8][random.random_range(0..3)];
            for (to, from) in bytes[at..].iter_mut().zip(&number.to_le_bytes()[..width]) {
                *to = *from;
            }
        }
        4 => {
            let end = (at + random.random_range(1..40)).min(bytes.len());
            bytes.drain(at..end);
        }
        5 => {
            let end = (at + random.random_range(1..40)).min(bytes.len());
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
        6 => {
            let other = &seeds[random.random_range(0..seeds.len())];
            let from = random.random_range(0..other.len());
            let end = (from + random.random_range(1..60)).min(other.len());
            let place = at..(at + random.random_range(0..60)).min(bytes.len());
            bytes.splice(place, other[from..end].iter().copied());
        }
        _ => bytes.truncate(at),
    }
}

fn files() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let small = |tiny: Tiny| {
        let tiny = Tiny { layers: 1, ..tiny };
        std::fs::read(tiny.write(folder.path())).unwrap()
    };
    let yarn = ("rope.scaling.type", Value::String("yarn".to_owned()));
    vec![
        small(Tiny::new("llama")),
        small(Tiny {
            window: 4,
            template: Some("{{ messages[0].content }}"),
            ..Tiny::new("llama")
        }),
        small(Tiny {
            dtype: GgmlDType::Q8_0,
            more: vec![yarn],
            ..Tiny::new("qwen2")
        }),
        small(Tiny {
            dtype: GgmlDType::Q5_0,
            ..Tiny::new("qwen3")
        }),
        small(Tiny {
            tied: true,
            ..Tiny::new("gemma2")
        }),
        small(Tiny {
            dtype: GgmlDType::Q4_1,
            ..Tiny::new("gemma3")
        }),
        small(Tiny {
            dtype: GgmlDType::F16,
            ..Tiny::new("phi3")
        }),
        small(Tiny::new("smollm3")),
    ]
}

#[test]
fn gguf_reader() {
    drive("gguf", &files(), 1500, fuzz::gguf);
}

fn vocabularies() -> Vec<Vec<u8>> {
    let bytes = |parts: &[&[u8]]| parts.concat();
    vec![
        // A byte-level vocabulary of five tokens and two merges.
        bytes(&[
            &[0, 1, 0, 5],
            &[
                10, b'a', 10, b'b', 11, b'a', b'b', 30, b'<', b's', b'>', 10, b'c',
            ],
            &[2, 3],
            b"a b",
            &[4],
            b"ab c",
            &[3, 3, 0],
            "abc<s> ab\u{e9}".as_bytes(),
        ]),
        // SentencePiece, with scores, bytes and a space.
        bytes(&[
            &[1, 0, 0, 4],
            &[
                12, 0xE2, 0x96, 0x81, 10, b'a', 60, b'<', b'0', b'x', b'4', b'1', b'>', 10, b'b',
            ],
            &[0, 0, 1, 2],
            b"a b a\xFF\xFEb",
        ]),
    ]
}

#[test]
fn tokenizer_conversion() {
    drive("tokenizer", &vocabularies(), 30_000, fuzz::tokenizer);
}

fn templates() -> Vec<Vec<u8>> {
    let with_content = |source: &str| [source.as_bytes(), b"\0\0hello {{ x }} <s>"].concat();
    [
        llmpick_engine::template::CHATML,
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m['content'] | trim }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "{% macro f(x) %}{{ x | upper }}{% endmacro %}{% set ns = namespace(a=1) %}{% set ns.a = [ns.a] %}{{ f(ns.a) }}{{ messages | tojson }}{{ strftime_now('%Y') }}",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[-1].content.split(' ')[0].strip() }}{{ range(7) | list }}",
        "{%- for i in range(99) -%}{%- for j in range(99) -%}{{ loop.index0 }}{% break %}{%- endfor -%}{%- endfor -%}{% generation %}x{% endgeneration %}",
    ]
    .map(with_content)
    .to_vec()
}

#[test]
fn template_renderer() {
    drive("template", &templates(), 6_000, fuzz::template);
}

#[test]
#[ignore = "writes what cargo-fuzz begins with: see fuzz/README.md"]
fn write_seeds() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, seeds) in [
        ("gguf", files()),
        ("tokenizer", vocabularies()),
        ("template", templates()),
    ] {
        let folder = corpus.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed).unwrap();
        }
    }
}
