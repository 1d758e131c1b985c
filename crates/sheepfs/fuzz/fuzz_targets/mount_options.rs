//! Mount options, as in `-o` of mount(8). Parsing any bytes yields only options of
//! the command line, each as one word, or an error.

#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use libfuzzer_sys::fuzz_target;

#[path = "../../src/mount_options.rs"]
mod mount_options;

fuzz_target!(|input: &[u8]| {
    for sloppy in [false, true] {
        let mut options = mount_options::MountOptions::default();
        let read = options.read(OsStr::from_bytes(input), sloppy, |_| false);
        assert!(
            options
                .words
                .iter()
                .all(|word| word.as_bytes().starts_with(b"--"))
        );
        if let Err(error) = read {
            assert!(!error.0.is_empty());
        }
    }
});
