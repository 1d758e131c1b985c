//! Lines written to every command file. The first byte selects the file, the second is
//! the length of the line; the bytes after the line are the responses.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheepfs_vfs::{Ino, OpenMode};

mod malformed_transport;

const FILES: [[&str; 2]; 10] = [
    ["vdi", "mount"],
    ["vdi", "unmount"],
    ["vdi", "create"],
    ["vdi", "snapshot"],
    ["vdi", "clone"],
    ["vdi", "rollback"],
    ["vdi", "resize"],
    ["vdi", "delete"],
    ["config", "page_cache"],
    ["config", "sheep_info"],
];

fuzz_target!(|input: &[u8]| {
    let [file, len, rest @ ..] = input else {
        return;
    };
    let (line, responses) = rest.split_at(rest.len().min(usize::from(*len)));
    let [directory, name] = FILES[usize::from(*file) % FILES.len()];
    malformed_transport::run(responses, |tree| async move {
        let directory = tree.lookup(Ino::ROOT, directory.as_bytes()).await;
        let directory = directory.expect("it is always there").ino;
        let file = tree.lookup(directory, name.as_bytes()).await;
        let file = file.expect("it is always there").ino;
        let mode = OpenMode {
            read: false,
            write: true,
        };
        let opened = tree.files().open(file, mode, tokio::time::Instant::now()).await.expect("it can be written");
        let (done, written) = tokio::sync::oneshot::channel();
        tree.files().write(
            opened.handle,
            0,
            line,
            true,
            Box::new(|result| drop(done.send(result))),
        );
        // An error is fine, but the write must complete.
        let _ = written.await.expect("every write completes");
        tree.files().release(opened.handle);
    });
});
