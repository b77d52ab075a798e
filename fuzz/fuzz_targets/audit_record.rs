//! A log directory may hold anything: the reader must report on any bytes, without a panic, a hang or an
//! allocation that the bytes themselves ask for.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _report = audit_logging::reader::scan(bytes);
});
