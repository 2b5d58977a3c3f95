#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| waffles_fuzz::names_uris::check(data));
