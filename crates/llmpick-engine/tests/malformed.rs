//! Files that are no good models: each is refused with one sentence, and none makes us
//! panic, read out of bounds, or ask for absurd memory.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use common::tiny::Tiny;
use llmpick_core::{GenerateRequest, Message, Prompt, Sampling};
use llmpick_engine::{EngineError, EngineOptions, LoadErrorKind, Model, read_info};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

struct Bench {
    folder: tempfile::TempDir,
    good: Vec<u8>,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let good = fs::read(Tiny::new("llama").write(folder.path())).unwrap();
        Bench { folder, good }
    }

    fn write(&self, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("changed.gguf");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn refusal(&self, bytes: &[u8]) -> LoadErrorKind {
        refusal(&self.write(bytes))
    }

    /// Where `needle` first stands in the good file.
    fn find(&self, needle: &[u8]) -> usize {
        self.good
            .windows(needle.len())
            .position(|w| w == needle)
            .unwrap()
    }

    /// The good file with other bytes from `at` on.
    fn changed(&self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut changed = self.good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    }
}

impl Bench {
    /// The good file with one setting more, in front of the others.
    fn with_setting(&self, key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        let count = u64::from_le_bytes(*self.good[16..24].first_chunk().unwrap());
        [
            &self.good[..16],
            &(count + 1).to_le_bytes(),
            &(key.len() as u64).to_le_bytes(),
            key.as_bytes(),
            &kind.to_le_bytes(),
            value,
            &self.good[24..],
        ]
        .concat()
    }
}

fn refusal(path: &Path) -> LoadErrorKind {
    Model::open(path, &EngineOptions::default())
        .err()
        .unwrap()
        .kind
}

#[test]
fn other_files_are_named_as_such() {
    let bench = Bench::new();
    let text = bench.refusal(b"Once upon a time there was a model.");
    assert!(
        matches!(&text, LoadErrorKind::NotGguf { start } if start.contains("Once upo")),
        "{text}"
    );
    assert!(matches!(bench.refusal(b""), LoadErrorKind::NotGguf { .. }));
    assert!(matches!(
        bench.refusal(b"GG"),
        LoadErrorKind::NotGguf { .. }
    ));
    assert!(matches!(
        refusal(bench.folder.path()),
        LoadErrorKind::Incomplete { missing } if missing == "config.json"
    ));
    assert!(matches!(
        refusal(&bench.folder.path().join("none.gguf")),
        LoadErrorKind::Missing
    ));
    let old = bench.refusal(&bench.changed(4, &1u32.to_le_bytes()));
    assert!(
        matches!(old, LoadErrorKind::Version { version: 1 }),
        "{old}"
    );
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bench = Bench::new();
    let length = bench.good.len();
    let header = bench.find(b"blk.2.ffn_norm.weight") + 60;
    let cuts = (4..header)
        .step_by(61)
        .chain((header..length).step_by(9973));
    for cut in cuts.chain([8, 16, 24, length - 1]) {
        let kind = bench.refusal(&bench.good[..cut]);
        assert!(
            matches!(kind, LoadErrorKind::Truncated { .. }),
            "{cut}: {kind}"
        );
    }
}

#[test]
fn unknown_architectures_and_types_are_named() {
    let bench = Bench::new();
    let at = bench.find(b"llama");
    let kind = bench.refusal(&bench.changed(at, b"mamba"));
    assert!(
        matches!(&kind, LoadErrorKind::Architecture { architecture } if architecture == "mamba")
    );
    assert!(kind.to_string().contains("qwen2"), "{kind}");
    // After a tensor's name stand its rank, its two lengths, and its type.
    let name = b"blk.1.ffn_up.weight";
    let at = bench.find(name) + name.len() + 4 + 16;
    for (id, label) in [(16u32, "IQ2_XXS"), (77, "type number 77")] {
        let kind = bench.refusal(&bench.changed(at, &id.to_le_bytes()));
        let LoadErrorKind::Quantisation {
            tensor,
            quantisation,
        } = &kind
        else {
            panic!("{kind}");
        };
        assert_eq!(
            (tensor.as_str(), quantisation.as_str()),
            ("blk.1.ffn_up.weight", label)
        );
    }
}

#[test]
fn impossible_counts_shapes_and_offsets_are_refused() {
    let bench = Bench::new();
    let name = b"blk.1.ffn_up.weight";
    let at = bench.find(name) + name.len();
    let huge = u64::MAX.to_le_bytes();
    for (what, place, bytes) in [
        ("tensor count", 8, huge.as_slice()),
        ("metadata count", 16, &huge),
        ("name length", at - name.len() - 8, &huge),
        ("rank 0", at, &0u32.to_le_bytes()),
        ("rank 5", at, &5u32.to_le_bytes()),
        ("width", at + 4, &huge),
        ("zero rows", at + 12, &0u64.to_le_bytes()),
        ("other rows", at + 12, &95u64.to_le_bytes()),
        ("overflowing rows", at + 12, &(1u64 << 60).to_le_bytes()),
        ("offset", at + 24, &huge),
        ("unaligned offset", at + 24, &1u64.to_le_bytes()),
        ("renamed", at - 6, b"abcdef"),
    ] {
        let kind = bench.refusal(&bench.changed(place, bytes));
        let said = kind.to_string();
        assert!(
            matches!(
                kind,
                LoadErrorKind::Truncated { .. }
                    | LoadErrorKind::Malformed(_)
                    | LoadErrorKind::Feature(_)
            ),
            "{what}: {said}"
        );
    }
}

/// Not a search for faults (that is a fuzzer's work), but any change of a header must end in
/// a model or a sentence.
#[test]
fn random_changes_never_panic() {
    let bench = Bench::new();
    let header = bench.find(b"blk.2.ffn_norm.weight") + 60;
    let mut random = Pcg64::seed_from_u64(11);
    for _ in 0..400 {
        let mut bytes = bench.good.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..header);
            bytes[at] = match random.random_range(0..3) {
                0 => 0,
                1 => 0xff,
                _ => random.random(),
            };
        }
        let path = bench.write(&bytes);
        drop(read_info(&path));
        drop(Model::open(&path, &EngineOptions::default()));
    }
}

/// The same on the header of a real file: cut short, and with its weights missing.
#[test]
fn a_real_header_without_weights_is_cut_short() {
    for name in [common::SMOLLM2, common::QWEN_SMALL] {
        let Some(path) = common::model(name) else {
            continue;
        };
        let bench = Bench::new();
        let file = fs::read(&path).unwrap();
        for share in [1, 50, 99] {
            let kind = bench.refusal(&file[..file.len() / 100 * share]);
            assert!(
                matches!(kind, LoadErrorKind::Truncated { .. }),
                "{name} {share} %: {kind}"
            );
            assert!(kind.to_string().contains("fetch it again"), "{kind}");
        }
    }
}

/// A tiny llama that says something else about itself.
fn with(key: &'static str, value: Value) -> Result<Model, LoadErrorKind> {
    let tiny = Tiny {
        more: vec![(key, value)],
        ..Tiny::new("llama")
    };
    let folder = tempfile::tempdir().unwrap();
    let path = tiny.write(folder.path());
    Model::open(&path, &EngineOptions::default()).map_err(|error| error.kind)
}

#[test]
fn settings_that_contradict_the_tensors_or_sense_are_refused() {
    assert!(with("block_count", Value::U32(3)).is_ok());
    let text = |text: &str| Value::String(text.to_owned());
    for (key, value) in [
        ("block_count", Value::U32(0)),
        ("block_count", Value::U32(2)),
        ("block_count", Value::U32(4)),
        ("block_count", Value::U32(0xFF_FFFF)),
        ("block_count", Value::U64(u64::MAX)),
        ("block_count", Value::I32(-1)),
        ("block_count", text("three")),
        ("embedding_length", Value::U32(0)),
        ("embedding_length", Value::U32(32)),
        ("embedding_length", Value::U32(0xFF_FFFF)),
        ("feed_forward_length", Value::U32(0)),
        ("feed_forward_length", Value::U32(95)),
        ("attention.head_count", Value::U32(0)),
        ("attention.head_count", Value::U32(3)),
        ("attention.head_count", Value::U32(0xFF_FFFF)),
        ("attention.head_count_kv", Value::U32(0)),
        ("attention.head_count_kv", Value::U32(3)),
        ("attention.head_count_kv", Value::U32(4)),
        ("attention.key_length", Value::U32(0)),
        ("attention.key_length", Value::U32(8)),
        ("attention.key_length", Value::U32(0xFF_FFFF)),
        ("attention.value_length", Value::U32(8)),
        ("attention.sliding_window", Value::U32(u32::MAX)),
        ("context_length", Value::U32(0)),
        ("context_length", text("long")),
        ("attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
        ("attention.layer_norm_rms_epsilon", Value::F32(0.0)),
        ("attention.layer_norm_rms_epsilon", Value::U32(1)),
        ("attention.scale", Value::F32(f32::NAN)),
        ("attention.scale", Value::F32(-1.0)),
        ("attn_logit_softcapping", Value::F32(0.0)),
        ("final_logit_softcapping", Value::F32(f32::INFINITY)),
        ("rope.freq_base", Value::F32(0.0)),
        ("rope.freq_base", Value::F32(f32::INFINITY)),
        ("rope.dimension_count", Value::U32(0)),
        ("rope.dimension_count", Value::U32(15)),
        ("rope.dimension_count", Value::U32(18)),
        ("rope.scaling.factor", Value::F32(0.0)),
        ("rope.scaling.factor", Value::F32(f32::NAN)),
        ("rope.scaling.type", text("dynamic")),
        ("rope.scaling.original_context_length", Value::U32(0)),
        ("rope.scaling.attn_factor", Value::F32(1.5)),
        ("expert_count", Value::U32(8)),
    ] {
        let Err(kind) = with(key, value.clone()) else {
            panic!("{key} = {value:?} was taken");
        };
        assert!(
            matches!(
                kind,
                LoadErrorKind::Malformed(_)
                    | LoadErrorKind::Feature(_)
                    | LoadErrorKind::Memory { .. }
            ),
            "{key} = {value:?}: {kind:?}"
        );
    }
}

#[test]
fn tensors_of_the_wrong_kind_are_refused() {
    let with_vector = |name: &'static str, values: Vec<f32>| {
        let tiny = Tiny {
            vectors: vec![(name, values)],
            ..Tiny::new("llama")
        };
        let folder = tempfile::tempdir().unwrap();
        refusal(&tiny.write(folder.path())).to_string()
    };
    for (name, values, said) in [
        ("rope_freqs.weight", vec![1.0; 7], "has the shape [7]"),
        ("rope_freqs.weight", vec![0.0; 8], "is not positive"),
        ("rope_freqs.weight", vec![f32::NAN; 8], "not finite"),
        ("rope_factors_long.weight", vec![1.0; 8], "not for both"),
        ("blk.0.attn_q.bias", vec![1.0; 63], "has the shape [63]"),
        (
            "blk.0.ffn_gate_inp.weight",
            vec![1.0; 64],
            "do not have here",
        ),
        ("blk.3.attn_norm.weight", vec![1.0; 64], "do not have here"),
        ("blk.0.attn_qkv.weight", vec![1.0; 64], "do not have here"),
    ] {
        let message = with_vector(name, values);
        assert!(message.contains(said), "{name}: {message}");
    }
}

/// Where a tensor's bytes begin in a file.
fn place_of(file: &[u8], name: &str) -> usize {
    let content = Content::read(&mut std::io::Cursor::new(file)).unwrap();
    (content.tensor_data_offset + content.tensor_infos[name].offset) as usize
}

#[test]
fn numbers_that_are_none_are_refused_or_reported() {
    for dtype in [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::Q8_0,
        GgmlDType::Q4_1,
    ] {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Tiny {
            dtype,
            ..Tiny::new("llama")
        };
        let good = fs::read(tiny.write(folder.path())).unwrap();
        let path = folder.path().join("changed.gguf");
        let damage = |name: &str, at: usize| {
            let mut bytes = good.clone();
            // NaN as a float, as a half, and as the scale of a block.
            let start = place_of(&good, name) + at;
            let nan = f32::NAN.to_le_bytes();
            match dtype {
                GgmlDType::F32 => bytes[start..start + 4].copy_from_slice(&nan),
                _ => bytes[start..start + 2].copy_from_slice(&0x7E01u16.to_le_bytes()),
            }
            fs::write(&path, bytes).unwrap();
        };
        for name in [
            "blk.1.attn_k.weight",
            "blk.0.ffn_down.weight",
            "output.weight",
        ] {
            damage(name, 0);
            let kind = refusal(&path);
            let said = kind.to_string();
            assert!(
                matches!(kind, LoadErrorKind::Malformed(_)) && said.contains(name),
                "{dtype:?} {name}: {said}"
            );
        }
        if dtype == GgmlDType::F32 {
            damage("blk.2.attn_norm.weight", 8);
            assert!(matches!(refusal(&path), LoadErrorKind::Malformed(_)));
        }
        // Rows of embeddings are read when a token needs them, and not before.
        let row = common::tiny::WIDTH / dtype.block_size() * dtype.type_size();
        damage("token_embd.weight", row * usize::from(b'e'));
        let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
        let ask = |model: &mut Model, text: &str| {
            let request = GenerateRequest {
                sampling: Sampling::greedy(),
                max_tokens: Some(1),
                ..GenerateRequest::new(Prompt::Text(text.to_owned()))
            };
            model.generate(&request, &|| false, &mut |_| {}).map(drop)
        };
        ask(&mut model, "abc").unwrap();
        let error = ask(&mut model, "abcde").unwrap_err();
        assert!(
            matches!(&error, EngineError::Fault(what) if what.contains("token 101")),
            "{dtype:?}: {error}"
        );
    }
}

#[test]
fn bytes_and_settings_are_said_once() {
    let bench = Bench::new();
    // The second tensor where the first is.
    let name = b"blk.1.ffn_up.weight";
    let at = bench.find(name) + name.len() + 4 + 16 + 4;
    let kind = bench.refusal(&bench.changed(at, &0u64.to_le_bytes()));
    assert!(kind.to_string().contains("share bytes"), "{kind}");
    let (one, two) = (b"llama.attention.key_length", b"llama.attention.head_count");
    assert_eq!(one.len(), two.len());
    let kind = bench.refusal(&bench.changed(bench.find(one), two));
    assert!(
        kind.to_string().contains("two settings are called"),
        "{kind}"
    );
}

/// Alignments, and arrays of lengths and depths that no file can hold.
#[test]
fn absurd_settings_are_refused() {
    const NUMBER: u32 = 4;
    const LONG: u32 = 10;
    const TEXT: u32 = 8;
    const ARRAY: u32 = 9;
    let bench = Bench::new();
    let array = |kind: u32, count: u64| {
        let head: [&[u8]; 2] = [&kind.to_le_bytes(), &count.to_le_bytes()];
        head.concat()
    };
    let number = |n: u32| n.to_le_bytes().to_vec();
    for (key, kind, value, said) in [
        ("general.alignment", NUMBER, number(0), "alignment is 0"),
        ("general.alignment", NUMBER, number(3), "alignment is 3"),
        (
            "general.alignment",
            NUMBER,
            number(1 << 31),
            "alignment is 2147483648",
        ),
        (
            "general.alignment",
            LONG,
            vec![32, 0, 0, 0, 0, 0, 0, 0],
            "32-bit",
        ),
        ("an.array", ARRAY, array(NUMBER, u64::MAX), "an array"),
        ("an.array", ARRAY, array(LONG, u64::MAX / 8 + 1), "an array"),
        ("an.array", ARRAY, array(TEXT, 1 << 40), "a setting"),
        (
            "an.array",
            ARRAY,
            array(ARRAY, 1).repeat(8),
            "nested too deep",
        ),
        ("an.array", ARRAY, array(77, 1), "unknown type 77"),
        ("a.number", 77, Vec::new(), "unknown type 77"),
        ("a.text", TEXT, u64::MAX.to_le_bytes().to_vec(), "a setting"),
    ] {
        let kind = bench.refusal(&bench.with_setting(key, kind, &value));
        let message = kind.to_string();
        assert!(
            matches!(
                kind,
                LoadErrorKind::Malformed(_) | LoadErrorKind::Truncated { .. }
            ),
            "{key} {said}: {message}"
        );
        assert!(
            message.contains(said),
            "{key}: {message:?} without {said:?}"
        );
    }
}

#[test]
fn more_tokens_than_embeddings_are_refused() {
    let bench = Bench::new();
    let name = b"token_embd.weight";
    // After the name: rank and columns, then rows.
    let at = bench.find(name) + name.len() + 4 + 8;
    let rows = common::tiny::VOCAB as u64 - 1;
    let kind = bench.refusal(&bench.changed(at, &rows.to_le_bytes()));
    assert!(
        kind.to_string()
            .contains("259 tokens and embeddings for 258"),
        "{kind}"
    );
}

#[test]
fn a_template_that_loops_ends_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny {
        template: Some(
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}",
        ),
        ..Tiny::new("llama")
    };
    let path = tiny.write(folder.path());
    let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
    let chat = Prompt::Chat(vec![Message::user("hello")]);
    let error = model
        .generate(&GenerateRequest::new(chat), &|| false, &mut |_| {})
        .unwrap_err();
    let EngineError::Template(cause) = &error else {
        panic!("{error:?}");
    };
    assert!(cause.to_string().contains("too many steps"), "{cause}");
}
