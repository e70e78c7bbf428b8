//! Random weights and activations for the tests and measurements of this crate.

use half::{bf16, f16};

use crate::{Format, Level};

/// A small generator: the tests need bytes, not quality.
pub struct Random(u64);

impl Random {
    /// A stream of its own for each seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number (xorshift64*).
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in −1..1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `len` numbers, uniform in −1..1.
    pub fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }
}

/// Bytes of a `rows × cols` matrix: every bit pattern of the quants, scales of
/// ordinary size.
pub fn random_weights(format: Format, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let size = format.block_bytes();
    let mut bytes = vec![0u8; rows * cols / format.block_len() * size];
    for block in bytes.chunks_exact_mut(size) {
        for byte in block.iter_mut() {
            *byte = (random.bits() >> 33) as u8;
        }
        let mut put = |at: usize, size: f32| {
            let value = f16::from_f32(random.unit() * size);
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        match format {
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => put(0, 0.01),
            Format::Q4_1 | Format::Q5_1 => {
                put(0, 0.01);
                put(2, 0.1);
            }
            Format::Q4_K | Format::Q5_K => {
                put(0, 0.001);
                put(2, 0.001);
            }
            Format::Q6_K => put(208, 0.001),
            Format::F16 => put(0, 1.0),
            Format::BF16 => {
                block.copy_from_slice(&bf16::from_f32(random.unit()).to_le_bytes());
            }
            Format::F32 => block.copy_from_slice(&random.unit().to_le_bytes()),
        }
    }
    bytes
}

/// From now on every kernel of the process runs in the form `level`, if it is here.
pub fn use_level(level: Level) {
    level.make_best();
}
