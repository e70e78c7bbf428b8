//! Files that are no good models: each is refused with one sentence, and none makes us
//! panic, read out of bounds, or ask for absurd memory.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::tiny::Tiny;
use llmpick_engine::{EngineOptions, LoadErrorKind, Model, read_info};
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
    assert!(matches!(refusal(bench.folder.path()), LoadErrorKind::Io(_)));
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
