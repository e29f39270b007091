#![no_main]

#[path = "../boundaries.rs"]
#[allow(dead_code, reason = "one boundary of all")]
mod boundaries;

libfuzzer_sys::fuzz_target!(|data: &[u8]| boundaries::http_request(data));
