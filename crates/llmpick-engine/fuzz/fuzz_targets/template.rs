//! A chat template and a conversation.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| llmpick_engine::fuzz::template(bytes));
