//! Our decoder against candle's, on random bytes of every format.
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;

use candle_core::{
    Device,
    quantized::{QStorage, QTensor},
};
use proptest::prelude::*;

use super::*;
use crate::testing::random_weights;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn same_numbers_as_candle(seed in any::<u64>(), rows in 1usize..5, blocks in 1usize..4) {
        for format in Format::ALL {
            let cols = blocks * format.block_len();
            let bytes = random_weights(format, rows, cols, seed);
            let storage =
                QStorage::from_data(Cow::Borrowed(&bytes), &Device::Cpu, format.ggml()).unwrap();
            let theirs = QTensor::new(storage, (rows, cols)).unwrap();
            let theirs = theirs.dequantize(&Device::Cpu).unwrap();
            let theirs = theirs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let mut ours = vec![0.0; rows * cols];
            dequantise(format, &bytes, &mut ours);
            prop_assert_eq!(&ours, &theirs, "{:?}", format);
        }
    }
}

#[test]
fn shapes_are_checked() {
    let block = Format::Q4_K.checked_size(4, 100);
    assert!(matches!(
        block,
        Err(KernelError::Columns {
            cols: 100,
            block: 256,
            ..
        })
    ));
    assert!(matches!(
        Format::F32.checked_size(0, 4),
        Err(KernelError::Shape { .. })
    ));
    assert!(matches!(
        Format::F32.checked_size(usize::MAX / 2, 64),
        Err(KernelError::Shape { .. })
    ));
    assert_eq!(Format::Q6_K.checked_size(3, 512), Ok(3 * 2 * 210));
    assert!(matches!(
        Format::from_ggml(GgmlDType::Q2K),
        Err(KernelError::UnsupportedType(GgmlDType::Q2K))
    ));
}

#[test]
fn what_is_not_finite_is_found() {
    for format in Format::ALL {
        let (rows, cols) = (6, 512);
        let good = random_weights(format, rows, cols, 3);
        let row_bytes = good.len() / rows;
        assert_eq!(first_not_finite(format, &good, row_bytes), None);
        // Whatever is found makes a weight that is not finite, and the other way round.
        let (mut found, mut random) = (0, crate::testing::Random::new(8));
        for _ in 0..2000 {
            let mut bytes = good.clone();
            let at = random.bits() as usize % (bytes.len() - 1);
            (bytes[at], bytes[at + 1]) = (random.bits() as u8 | 0x80, 0x7F);
            let mut out = vec![0.0; rows * cols];
            dequantise(format, &bytes, &mut out);
            let bad = out
                .chunks(cols)
                .position(|row| row.iter().any(|x| !x.is_finite()));
            let refused = first_not_finite(format, &bytes, row_bytes);
            // A minimum may be infinite and its factors zero; the scale is refused still.
            if bad.is_some() {
                assert_eq!(refused, bad, "{format:?} at {at}");
            }
            found += usize::from(refused.is_some());
        }
        assert!(found > 5, "{format:?} {found}");
    }
}
