//! Products in every format against the dequantised weights, and against
//! themselves row by row.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use llmpick_kernels::{
    Embedding, Format, KernelError, Matrix, Pool, Rounding,
    map::Pages,
    testing::{Random, random_weights},
};
use proptest::prelude::*;

/// The weights as `f32`, by the embedding's decoder (itself tested against candle's).
fn dequantised(format: Format, rows: usize, cols: usize, bytes: &[u8]) -> Vec<f32> {
    let shared: Arc<dyn Pages> = Arc::new(bytes.to_vec());
    let table = Embedding::from_ggml(format.ggml(), rows, cols, shared, 0..bytes.len()).unwrap();
    let mut out = vec![0.0; rows * cols];
    for (row, out) in out.chunks_mut(cols).enumerate() {
        table.row(row, out).unwrap();
    }
    out
}

fn check(format: Format, rows: usize, cols: usize, m: usize, seed: u64) {
    for rounding in [Rounding::Int8, Rounding::Int16] {
        check_with(rounding, format, (rows, cols), m, seed);
    }
}

fn check_with(
    rounding: Rounding,
    format: Format,
    (rows, cols): (usize, usize),
    m: usize,
    seed: u64,
) {
    let what = format!("{format:?} {rounding:?} {rows}×{cols} m={m} seed={seed}");
    let pool = Pool::new(2);
    let bytes = random_weights(format, rows, cols, seed);
    let matrix = Matrix::from_ggml(format.ggml(), rows, cols, &bytes)
        .unwrap()
        .rounding(rounding);
    let x = Random::new(seed ^ 77).vec(m * cols);
    let mut y = vec![f32::NAN; m * rows];
    matrix.matmul(&pool, &x, m, &mut y);

    let weights = dequantised(format, rows, cols, &bytes);
    for (x, y) in x.chunks(cols).zip(y.chunks(rows)) {
        let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        for (w, y) in weights.chunks(cols).zip(y) {
            let exact: f64 = w
                .iter()
                .zip(x)
                .map(|(w, x)| f64::from(*w) * f64::from(*x))
                .sum();
            // An activation is off by at most half a step of 1/127 of its block's
            // largest, evenly spread: 1/127/√12 each, so five times that, summed
            // in squares, is safely outside of chance.
            // With 1/16256 it is 128 times less, and sums in `f32` add their share.
            let allowed = match rounding {
                _ if format.is_float() => 2e-6,
                Rounding::Int8 => 0.012,
                Rounding::Int16 => 1e-4 + 1e-5,
            };
            let error = (f64::from(*y) - exact).abs() / (norm(w) * norm(x)).max(1e-9);
            assert!(
                error < allowed,
                "{what}: {y} instead of {exact}, relative error {error}"
            );
        }
    }

    let alone = Pool::new(1);
    let mut single = vec![f32::NAN; rows];
    for (x, y) in x.chunks(cols).zip(y.chunks(rows)) {
        matrix.matmul(&alone, x, 1, &mut single);
        assert_eq!(single, y, "{what}: a row alone differs");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn every_format_every_shape(
        format in prop::sample::select(Format::ALL.to_vec()),
        rows in 1usize..70,
        blocks in 1usize..30,
        m in 1usize..50,
        seed in any::<u64>(),
    ) {
        let blocks = if format.block_len() == 256 { blocks.div_ceil(6) } else { blocks };
        check(format, rows, blocks * format.block_len(), m, seed);
    }
}

#[test]
fn widths_of_the_pool() {
    for format in Format::ALL {
        for cols in [576, 640, 896, 1536, 4864] {
            if cols % format.block_len() == 0 {
                check(format, 33, cols, 1, 1);
                check(format, 48, cols, 13, 2);
            }
        }
    }
}

#[test]
fn wrong_sizes_are_refused() {
    let bytes = random_weights(Format::Q4_0, 4, 64, 1);
    let dtype = Format::Q4_0.ggml();
    assert!(matches!(
        Matrix::from_ggml(dtype, 5, 64, &bytes),
        Err(KernelError::Size {
            wanted: 180,
            given: 144,
            ..
        })
    ));
    assert!(matches!(
        Matrix::from_ggml(dtype, 4, 63, &bytes),
        Err(KernelError::Columns { .. })
    ));
    assert!(matches!(
        Matrix::from_ggml(dtype, 0, 64, &[]),
        Err(KernelError::Shape { .. })
    ));
}

#[test]
fn nan_and_infinite_numbers_do_not_crash() {
    let pool = Pool::new(2);
    for format in Format::ALL {
        let (rows, cols) = (20, 256);
        for fill in [0xFF, 0x7C] {
            let bytes = vec![fill; random_weights(format, rows, cols, 1).len()];
            let matrix = match Matrix::from_ggml(format.ggml(), rows, cols, &bytes) {
                Ok(matrix) => matrix,
                Err(error) => {
                    assert_eq!(error, KernelError::NotFinite { row: 0 });
                    continue;
                }
            };
            // As large as the formats can say it: 5e36.
            assert!(fill == 0x7C && matches!(format, Format::F32 | Format::BF16));
            for m in [1, 5, 40] {
                let mut y = vec![0.0; m * rows];
                matrix.matmul(&pool, &vec![1.0; m * cols], m, &mut y);
            }
        }
        let bytes = random_weights(format, rows, cols, 1);
        let matrix = Matrix::from_ggml(format.ggml(), rows, cols, &bytes).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; cols];
            x[40] = bad;
            let mut y = vec![0.0; rows];
            matrix.matmul(&pool, &x, 1, &mut y);
            assert!(y.iter().all(|y| !y.is_finite()), "{format:?} hid a {bad}");
        }
        let mut y = vec![1.0; rows];
        matrix.matmul(&pool, &vec![0.0; cols], 1, &mut y);
        assert!(
            y.iter().all(|y| *y == 0.0),
            "{format:?}: zero in, {y:?} out"
        );
        matrix.matmul(&pool, &vec![1e-42; cols], 1, &mut y);
        assert!(y.iter().all(|y| y.abs() < 1e-35), "{format:?}: {y:?}");
    }
}
