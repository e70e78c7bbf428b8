//! Fast quantised matmul and attention loops, each beside its plain version.
