//! A model file: its header, its tensors, and two tokens of an answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| llmpick_engine::fuzz::gguf(bytes));
