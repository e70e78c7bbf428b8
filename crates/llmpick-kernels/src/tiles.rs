//! Weights as the kernels want them: tiles of sixteen rows, at their own bit width.
//!
//! A tile holds sixteen rows from the first column to the last. Within it, the
//! four weights of a row that one integer instruction multiplies lie side by side,
//! rows one after the other: 64 bytes are columns 4i..4i+4 of all sixteen. Four-bit
//! formats put columns 8i..8i+4 into the low and 8i+4..8i+8 into the high halves of
//! 64 bytes; fifth bits are kept as eight bytes per four columns. So a product
//! with one row reads each byte once, at the width of the file.
//!
//! Rows missing in the last tile have scales of zero. [`crate::pack`] writes tiles.

use crate::{Format, format::offset, lanes::Lanes};

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Columns of a block, as the kernels count them.
pub const COLS: usize = 32;

/// Bytes of one block (32 columns) of a short format, or of 256 columns of a long one.
pub const fn unit_bytes(format: Format) -> usize {
    match format {
        Format::Q4_0 => 32 + 256,
        Format::Q4_1 => 64 + 256,
        Format::Q5_0 => 32 + 64 + 256,
        Format::Q5_1 => 64 + 64 + 256,
        Format::Q8_0 => 32 + 512,
        Format::Q4_K => 64 + 256 + 8 * 256,
        Format::Q5_K => 64 + 256 + 8 * 64 + 8 * 256,
        Format::Q6_K => 32 + 256 + 8 * 256 + 8 * 128,
        Format::F16 | Format::BF16 => 2 * ROWS,
        Format::F32 => 4 * ROWS,
    }
}

/// Bytes of a tile of `cols` columns.
pub fn tile_bytes(format: Format, cols: usize) -> usize {
    cols / format.block_len() * unit_bytes(format)
}

/// How the integer sums of a block become numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `scale · Σ (q − offset) a`.
    Offset,
    /// `scale · Σ q a + min · Σ a`.
    Min,
    /// As `Offset`, with a scale for each half of the block.
    Halves,
}

/// A block of 16 rows × 32 columns in registers.
#[derive(Clone, Copy)]
pub struct Unpacked<L: Lanes> {
    /// Unsigned weights, four columns at a time.
    pub w: [L::B; 8],
    /// The scales.
    pub s: L::F,
    /// Minima (`Min`), scales of the second half (`Halves`), or nothing of use.
    pub t: L::F,
}

/// A form of weights that a kernel can read block by block.
pub trait Source {
    /// How the sums become numbers.
    const KIND: Kind;
    /// What the unsigned weights are too large by.
    const OFFSET: i32;
    /// Bits of a weight as the kernels tell them apart: 5 (or fewer), 6 or 8.
    const BITS: u32;
    /// Bytes per block.
    const BYTES: usize;
    /// Whether the bytes come from memory and are worth asking for early.
    const FAR: bool;
    /// Block `b` of the tile at `tile`, which must have more than `b` blocks.
    unsafe fn block<L: Lanes>(tile: *const u8, b: usize) -> Unpacked<L>;
}

macro_rules! source {
    ($name:ident, $kind:ident, |$tile:ident, $b:ident| $load:expr) => {
        #[doc = concat!("Tiles of ", stringify!($name), ".")]
        #[allow(non_camel_case_types, reason = "the name of the format")]
        pub struct $name;
        impl Source for $name {
            const KIND: Kind = Kind::$kind;
            const OFFSET: i32 = offset(Format::$name);
            const BITS: u32 = match Format::$name {
                Format::Q8_0 => 8,
                Format::Q6_K => 6,
                _ => 5,
            };
            const BYTES: usize = match Format::$name {
                Format::Q4_K | Format::Q5_K | Format::Q6_K => unit_bytes(Format::$name) / 8,
                _ => unit_bytes(Format::$name),
            };
            const FAR: bool = true;
            #[inline(always)]
            unsafe fn block<L: Lanes>($tile: *const u8, $b: usize) -> Unpacked<L> {
                // SAFETY: the tile has more than `b` blocks, laid out as `unit_bytes`
                // counts and `pack` writes them.
                unsafe { $load }
            }
        }
    };
}

source!(Q4_0, Offset, |tile, b| {
    let p = tile.add(b * unit_bytes(Format::Q4_0));
    let s = L::load_f16(p);
    Unpacked {
        w: nibbles::<L>(p.add(32)),
        s,
        t: s,
    }
});
source!(Q4_1, Min, |tile, b| {
    let p = tile.add(b * unit_bytes(Format::Q4_1));
    Unpacked {
        w: nibbles::<L>(p.add(64)),
        s: L::load_f16(p),
        t: L::load_f16(p.add(32)),
    }
});
source!(Q5_0, Offset, |tile, b| {
    let p = tile.add(b * unit_bytes(Format::Q5_0));
    let s = L::load_f16(p);
    Unpacked {
        w: five_bits::<L>(p.add(96), p.add(32)),
        s,
        t: s,
    }
});
source!(Q5_1, Min, |tile, b| {
    let p = tile.add(b * unit_bytes(Format::Q5_1));
    let w = five_bits::<L>(p.add(128), p.add(64));
    Unpacked {
        w,
        s: L::load_f16(p),
        t: L::load_f16(p.add(32)),
    }
});
source!(Q8_0, Offset, |tile, b| {
    let p = tile.add(b * unit_bytes(Format::Q8_0));
    let s = L::load_f16(p);
    Unpacked {
        w: wide_bytes::<L>(p.add(32)),
        s,
        t: s,
    }
});
source!(Q4_K, Min, |tile, b| {
    let p = tile.add(b / 8 * unit_bytes(Format::Q4_K));
    let (s, t) = long_scales::<L>(p, b % 8);
    Unpacked {
        w: nibbles::<L>(p.add(320 + b % 8 * 256)),
        s,
        t,
    }
});
source!(Q5_K, Min, |tile, b| {
    let p = tile.add(b / 8 * unit_bytes(Format::Q5_K));
    let (s, t) = long_scales::<L>(p, b % 8);
    let w = five_bits::<L>(p.add(832 + b % 8 * 256), p.add(320 + b % 8 * 64));
    Unpacked { w, s, t }
});
source!(Q6_K, Halves, |tile, b| {
    let p = tile.add(b / 8 * unit_bytes(Format::Q6_K));
    let b = b % 8;
    let w = nibbles::<L>(p.add(288 + b * 256));
    let (g, h) = (
        p.add(288 + 2048 + b * 128),
        p.add(288 + 2048 + b * 128 + 64),
    );
    let (g, h) = (L::load_b(g), L::load_b(h));
    let w = [
        L::with_sixth::<0>(w[0], g),
        L::with_sixth::<1>(w[1], g),
        L::with_sixth::<2>(w[2], g),
        L::with_sixth::<3>(w[3], g),
        L::with_sixth::<0>(w[4], h),
        L::with_sixth::<1>(w[5], h),
        L::with_sixth::<2>(w[6], h),
        L::with_sixth::<3>(w[7], h),
    ];
    let d = L::load_f16(p);
    let s = L::mul(d, L::load_i8(p.add(32 + b * 32)));
    Unpacked {
        w,
        s,
        t: L::mul(d, L::load_i8(p.add(32 + b * 32 + 16))),
    }
});

/// Scales and negated minima of sub-block `b`; both products are exact in `f32`.
#[inline(always)]
unsafe fn long_scales<L: Lanes>(p: *const u8, b: usize) -> (L::F, L::F) {
    // SAFETY: 320 bytes of scales and minima lie before the weights.
    unsafe {
        let s = L::mul(L::load_f16(p), L::load_u8(p.add(64 + b * 16)));
        let m = L::mul(L::load_f16(p.add(32)), L::load_u8(p.add(192 + b * 16)));
        (s, L::sub(L::splat(0.0), m))
    }
}

#[inline(always)]
unsafe fn bytes<L: Lanes>(p: *const u8) -> [L::B; 8] {
    // SAFETY: a block of bytes is 512 long.
    unsafe {
        [
            L::load_b(p),
            L::load_b(p.add(64)),
            L::load_b(p.add(128)),
            L::load_b(p.add(192)),
            L::load_b(p.add(256)),
            L::load_b(p.add(320)),
            L::load_b(p.add(384)),
            L::load_b(p.add(448)),
        ]
    }
}

#[inline(always)]
unsafe fn wide_bytes<L: Lanes>(p: *const u8) -> [L::B; 8] {
    // SAFETY: the caller's pointer is good for a block of bytes.
    unsafe {
        let [a, b, c, d, e, f, g, h] = bytes::<L>(p);
        // Written out: a closure would be compiled without the form's features.
        [
            L::wide(a),
            L::wide(b),
            L::wide(c),
            L::wide(d),
            L::wide(e),
            L::wide(f),
            L::wide(g),
            L::wide(h),
        ]
    }
}

#[inline(always)]
unsafe fn nibbles<L: Lanes>(p: *const u8) -> [L::B; 8] {
    // SAFETY: a block of nibbles is 256 long.
    unsafe {
        let x = [
            L::load_b(p),
            L::load_b(p.add(64)),
            L::load_b(p.add(128)),
            L::load_b(p.add(192)),
        ];
        [
            L::low(x[0]),
            L::high(x[0]),
            L::low(x[1]),
            L::high(x[1]),
            L::low(x[2]),
            L::high(x[2]),
            L::low(x[3]),
            L::high(x[3]),
        ]
    }
}

#[inline(always)]
unsafe fn five_bits<L: Lanes>(low: *const u8, fifth: *const u8) -> [L::B; 8] {
    // SAFETY: a block has 256 bytes of low and 64 of fifth bits.
    unsafe {
        let w = nibbles::<L>(low);
        [
            L::with_fifth(w[0], fifth),
            L::with_fifth(w[1], fifth.add(8)),
            L::with_fifth(w[2], fifth.add(16)),
            L::with_fifth(w[3], fifth.add(24)),
            L::with_fifth(w[4], fifth.add(32)),
            L::with_fifth(w[5], fifth.add(40)),
            L::with_fifth(w[6], fifth.add(48)),
            L::with_fifth(w[7], fifth.add(56)),
        ]
    }
}

/// Blocks already unpacked by [`Source::block`] for `S`: the weights' bytes, then the
/// two rows of numbers. Many activation rows then share the work of unpacking.
pub struct Panel<S>(std::marker::PhantomData<S>);

/// Bytes of an unpacked block.
pub const PANEL_BYTES: usize = 8 * 64 + 2 * 64;

impl<S: Source> Source for Panel<S> {
    const KIND: Kind = S::KIND;
    const OFFSET: i32 = S::OFFSET;
    const BITS: u32 = S::BITS;
    const BYTES: usize = PANEL_BYTES;
    const FAR: bool = false;
    #[inline(always)]
    unsafe fn block<L: Lanes>(panel: *const u8, b: usize) -> Unpacked<L> {
        // SAFETY: the panel has more than `b` blocks of `PANEL_BYTES`.
        unsafe {
            let p = panel.add(b * PANEL_BYTES);
            let (s, t) = (p.add(512).cast(), p.add(576).cast());
            Unpacked {
                w: bytes::<L>(p),
                s: L::load(s),
                t: L::load(t),
            }
        }
    }
}

/// Writes a block to where [`Panel`] reads it.
#[inline(always)]
pub unsafe fn store<L: Lanes>(block: &Unpacked<L>, p: *mut u8) {
    // SAFETY: the caller's pointer is good for `PANEL_BYTES`.
    unsafe {
        for (i, w) in block.w.into_iter().enumerate() {
            L::store_b(p.add(i * 64), w);
        }
        L::store(p.add(512).cast(), block.s);
        L::store(p.add(576).cast(), block.t);
    }
}
