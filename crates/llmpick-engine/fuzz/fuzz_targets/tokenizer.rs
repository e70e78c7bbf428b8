//! A vocabulary as GGUF has it, and a text to encode with it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| llmpick_engine::fuzz::tokenizer(bytes));
