//! Lines written to every file that takes one. The first byte chooses the file,
//! the second how much of the rest is the line; what is behind it answers.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheepfs_vfs::{Ino, OpenMode};

mod malformed_response;

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
    let (line, answers) = rest.split_at(rest.len().min(usize::from(*len)));
    let [directory, name] = FILES[usize::from(*file) % FILES.len()];
    malformed_response::run(answers, |tree| async move {
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
        // Whatever it is: an answer is all that is asked for.
        let _ = written.await.expect("every write is answered");
        tree.files().release(opened.handle);
    });
});
