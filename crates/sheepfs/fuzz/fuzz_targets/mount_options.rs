//! The words behind `-o` of mount(8). What comes out are options of the command
//! line, each one word, and never anything else.

#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use libfuzzer_sys::fuzz_target;

#[path = "../../src/mount_options.rs"]
mod mount_options;

/// What the program's own module of this name has for the options.
mod usage_error {
    #[derive(Debug)]
    pub(crate) struct UsageError(pub(crate) String);
}

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
