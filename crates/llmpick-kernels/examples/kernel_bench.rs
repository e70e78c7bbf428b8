//! Measures the kernels. Products: GB/s of weights read with one row, and GOP/s (two
//! operations a weight) with more. Attention: microseconds a call.
//!
//! `cargo run --release -p llmpick-kernels --example kernel_bench [LEVEL] [FORMAT…|attention] [int8] [hot] [THREADS] [ROWS…]`
//!
//! A level (`Avx2`) is the form to run in instead of the best; formats (`Q4_K`) are the
//! only ones to measure, and attention is then left out, or all with `attention`.
//! Activations have fifteen bits, or eight with `int8`.
//!
//! The weights are those of a layer of a 0.5B model, repeated until they fill 256 MB,
//! so that one row reads memory and not the cache. With `hot` they are one small matrix,
//! used again and again: what the arithmetic could do if memory were no limit.

use std::time::Instant;

use llmpick_kernels::{
    AttentionSpec, Format, KvCache, KvType, Level, Matrix, Pool, Rounding, attention, testing,
};

fn main() {
    let arguments: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|a| a.parse().ok())
        .collect();
    let named = |name: String| std::env::args().any(|a| a.eq_ignore_ascii_case(&name));
    if let Some(level) = Level::all_here().find(|level| named(format!("{level:?}"))) {
        testing::use_level(level);
    }
    let mut formats = Format::ALL.to_vec();
    formats.retain(|format| named(format!("{format:?}")));
    let only_attention = named("attention".to_owned());
    let everything = formats.is_empty();
    if everything && !only_attention {
        formats = Format::ALL.to_vec();
    }
    let pool = Pool::new(arguments.first().copied().unwrap_or(0));
    let rows = match arguments.get(1..) {
        Some(rows) if !rows.is_empty() => rows.to_vec(),
        _ => vec![1, 2, 4, 8, 32, 128],
    };
    println!(
        "{} threads, {:?}; median of 7",
        pool.threads(),
        Level::best()
    );
    let rounding = match named("int8".to_owned()) {
        true => Rounding::Int8,
        false => Rounding::Int16,
    };
    let hot = named("hot".to_owned());
    for format in formats {
        let all = weights(&pool, format, rounding, hot);
        let repeats = if hot { 200 } else { 1 };
        print!("{:5}", format!("{format:?}"));
        for &m in &rows {
            // Enough work for a steady figure, little enough to wait for.
            let used = &all[..all.len().min((400 / m).max(1))];
            let seconds = median(|| {
                for matrix in (0..repeats).flat_map(|_| used.iter().flatten()) {
                    let x = &inputs()[..m * matrix.cols()];
                    OUT.with_borrow_mut(|y| {
                        y.resize(m * matrix.rows(), 0.0);
                        matrix.matmul(&pool, x, m, y);
                    });
                }
            });
            let numbers: usize = used.iter().flatten().map(|w| w.rows() * w.cols()).sum();
            let read: usize = used.iter().flatten().map(Matrix::size_bytes).sum();
            let (numbers, read) = (numbers * repeats, read * repeats);
            match m {
                1 => print!("  m=1 {:5.1} GB/s", read as f64 / seconds / 1e9),
                _ => print!(
                    "  m={m} {:4.0} GOP/s",
                    2.0 * (numbers * m) as f64 / seconds / 1e9
                ),
            }
        }
        println!();
    }
    for kind in [KvType::F32, KvType::F16]
        .into_iter()
        .filter(|_| everything)
    {
        measure_attention(&pool, kind);
    }
}

/// One layer of the pool's models: a token after 500 others, and 128 tokens after 384 and
/// after 3,872.
fn measure_attention(pool: &Pool, kind: KvType) {
    for (name, kv_heads, heads, dim) in [
        ("smollm2", 3, 9, 64),
        ("qwen 0.5b", 2, 14, 64),
        ("gemma3", 1, 4, 256),
    ] {
        let mut cache = KvCache::new(kv_heads, dim, kind);
        let keys = &inputs()[..4000 * kv_heads * dim];
        cache.write(0, keys, keys);
        let spec = AttentionSpec {
            heads,
            scale: 0.1,
            window: None,
            softcap: None,
        };
        let micros = |start: usize, m: usize| {
            let q = &inputs()[..m * heads * dim];
            let mut out = vec![0.0; q.len()];
            let repeats = 256 / m;
            let all = median(|| {
                (0..repeats).for_each(|_| attention(pool, &spec, q, start, &cache, &mut out));
            });
            all * 1e6 / repeats as f64
        };
        let (one, many, far) = (micros(500, 1), micros(384, 128), micros(3872, 128));
        // Two products, two operations for each number, of what a middle query sees.
        let rate =
            |micros: f64, seen: f64| 4.0 * 128.0 * seen * (heads * dim) as f64 / micros / 1e3;
        println!(
            "attention {kind:?} {name:9}  m=1 {one:6.1} µs  m=128 {many:8.1} µs ({:.0} GFLOP/s)  far {far:8.1} µs ({:.0} GFLOP/s)",
            rate(many, 448.5),
            rate(far, 3936.5),
        );
    }
}

/// Layers that fill 256 MB, or, for `hot`, the first matrix of one.
fn weights(pool: &Pool, format: Format, rounding: Rounding, hot: bool) -> Vec<Vec<Matrix>> {
    let mut one = layer(pool, format, rounding);
    if hot {
        one.truncate(1);
        return vec![one];
    }
    let bytes: usize = one.iter().map(Matrix::size_bytes).sum();
    let copies = (256_000_000 / bytes).max(1);
    (0..copies).map(|_| layer(pool, format, rounding)).collect()
}

/// Query, key and value, output, gate, up and down.
fn layer(pool: &Pool, format: Format, rounding: Rounding) -> Vec<Matrix> {
    let shapes = [
        (896, 1024),
        (128, 1024),
        (128, 1024),
        (896, 1024),
        (4864, 1024),
        (4864, 1024),
    ];
    let shapes = shapes.into_iter().chain([(896, 4864)]);
    let matrices = shapes.filter_map(|(rows, cols)| {
        let bytes = testing::random_weights(format, rows, cols, 1);
        let matrix = Matrix::from_ggml_in(pool, format.ggml(), rows, cols, &bytes);
        Some(matrix.ok()?.rounding(rounding))
    });
    matrices.collect()
}

thread_local! {
    static OUT: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn inputs() -> &'static [f32] {
    static INPUTS: std::sync::OnceLock<Vec<f32>> = std::sync::OnceLock::new();
    INPUTS.get_or_init(|| testing::Random::new(1).vec(512 * 4864))
}

fn median(mut work: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..7)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[3]
}
