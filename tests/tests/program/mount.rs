//! Called by mount(8).

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Place, SHEEPFS, Sheep, in_private_namespace, output, program, until};

/// Makes `mount.sheepfs` a helper that mount(8) finds.
const INSTALL: &str = "\
    helpers=$(realpath /sbin)
    mkdir old new
    mount --bind \"$helpers\" old
    ln -s \"$PWD\"/old/* new/
    ln -s \"$1\" new/mount.sheepfs
    mount --bind new \"$helpers\"
";

#[test]
fn mount_by_fstab_line_is_recognised_as_mounted() {
    let (place, sheep) = (Place::new(), Sheep::start());
    // Options of util-linux, of the kernel, and of sheepfs.
    let fstab = format!(
        "{} {} sheepfs _netdev,nofail,x-test,allow_other,pagecache,noexec,umask=027 0 0\n",
        sheep.address(),
        place.mnt.display()
    );
    fs::write(place.path("fstab"), fstab).unwrap();
    // Mounts by the line and by command, read-only, without a mount (-f), and with options
    // that -s ignores.
    let script = format!(
        "{INSTALL}
        mount -T fstab \"$PWD/mnt\"
        cat mnt/config/page_cache
        findmnt -n -o SOURCE,FSTYPE,VFS-OPTIONS \"$PWD/mnt\"
        stat -c %a mnt/volume
        mount -T fstab -a
        findmnt -n \"$PWD/mnt\" | wc -l
        mount -T fstab \"$PWD/mnt\" || echo again $?
        umount mnt
        mount -r -t sheepfs \"$2\" mnt
        findmnt -n -o VFS-OPTIONS \"$PWD/mnt\"
        umount mnt
        mount -f -t sheepfs \"$2\" mnt
        findmnt \"$PWD/mnt\" || echo nothing is mounted
        mount -f -t sheepfs -o bogus \"$2\" mnt || echo refused $?
        mount -n -s -t sheepfs -o bogus \"$2\" mnt
        umount mnt"
    );
    let address = sheep.address().to_string();
    let said = in_private_namespace(&place, &script, &[SHEEPFS.as_os_str(), address.as_ref()]);
    assert!(said.status.success());
    let lines = String::from_utf8(said.stdout).unwrap();
    let lines: Vec<_> = lines
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    // One line for each command that prints something.
    assert_eq!(
        lines,
        [
            "1",
            &format!("{address} fuse.sheepfs rw,nosuid,nodev,noexec,noatime"),
            "750",
            "1",
            "again 32",
            "ro,nosuid,nodev,noatime",
            "nothing is mounted",
            "refused 1",
        ]
    );
}

#[test]
fn mount_fuse3_runs_sheepfs_as_helper() {
    let (place, sheep) = (Place::new(), Sheep::start());
    // mount(8) of the type fuse.sheepfs falls back on this helper, which
    // runs `sheepfs` from PATH through a shell.
    fs::create_dir(place.path("bin")).unwrap();
    std::os::unix::fs::symlink(&*SHEEPFS, place.path("bin/sheepfs")).unwrap();
    let script = "
        PATH=$PWD/bin:$PATH
        mount.fuse3 \"sheepfs#$1\" \"$PWD/mnt\" -o ro,nosuid
        cat mnt/config/sheep_info
        findmnt -n -o FSTYPE,VFS-OPTIONS \"$PWD/mnt\"
        umount mnt
        mount.fuse3 \"$1\" \"$PWD/mnt\" -t fuse.sheepfs -o colour=red || echo refused $?";
    let address = sheep.address().to_string();
    let said = in_private_namespace(&place, script, &[address.as_ref()]);
    let text = String::from_utf8(said.stdout).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    let expected = [
        &*address,
        "fuse.sheepfs",
        "ro,nosuid,nodev,noatime",
        "refused",
        "1",
    ];
    assert_eq!(words, expected);
    let stderr = String::from_utf8(said.stderr).unwrap();
    assert!(
        stderr.contains("sheepfs: unknown mount option 'colour'"),
        "{stderr}"
    );
}

#[test]
fn mount_in_other_namespace() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let script = format!(
        "{INSTALL}
        unshare --mount --propagation private sh -c 'echo ready; read line' > ready < \"$3\" &
        exec 3> \"$3\"
        while ! grep -q ready ready; do :; done
        mount -N $! -t sheepfs \"$2\" \"$PWD/mnt\"
        findmnt \"$PWD/mnt\" || echo not here
        findmnt -N $! -n -o SOURCE \"$PWD/mnt\"
        nsenter -m -t $! umount \"$PWD/mnt\"
        echo >&3"
    );
    let fifo = place.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let address = sheep.address().to_string();
    let arguments = [SHEEPFS.as_os_str(), address.as_ref(), fifo.as_os_str()];
    let said = in_private_namespace(&place, &script, &arguments);
    assert_eq!(
        String::from_utf8(said.stdout).unwrap(),
        format!("not here\n{address}\n")
    );
}

#[test]
fn mount_exit_status_says_what_failed() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let mnt = place.mnt.to_str().unwrap();
    let address = sheep.address().to_string();
    let missing = place.path("missing");
    // An address without a listener.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let unused = closed.local_addr().unwrap().to_string();
    drop(closed);
    // Arguments, exit status as of mount(8), and what the error line contains.
    let cases: [(&[&str], i32, &str); 7] = [
        (&[&address], 1, "<DIRECTORY>"),
        (&[&address, mnt, "-x"], 1, "unexpected argument '-x'"),
        (
            &[&address, mnt, "-o", "ro,colour=red"],
            1,
            "unknown mount option 'colour'",
        ),
        (
            &[&address, mnt, "-o", "remount"],
            32,
            "no sheepfs is mounted there",
        ),
        (&[&address, missing.to_str().unwrap()], 32, "does not exist"),
        (
            &[&address, mnt, "-o", "attach=none"],
            32,
            "cannot attach none",
        ),
        (&[&unused, mnt, "-o", "retry_for=0"], 32, &unused),
    ];
    for (arguments, code, words) in cases {
        let said = output(program("/sbin/mount.sheepfs").args(arguments));
        let text = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(
            text.starts_with("mount.sheepfs: ") && text.contains(words),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!place.is_mounted(), "{arguments:?}");
    }
}

#[test]
fn mount_exit_status_of_signal_is_interrupted() {
    let place = Place::new();
    // It listens and never responds.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let child = program("mount.sheepfs")
        .args([address.as_str(), place.mnt.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _silent_connection = silent.accept().unwrap();
    let served_by = |parent: u32| {
        let path = format!("/proc/{parent}/task/{parent}/children");
        let children = fs::read_to_string(path).unwrap();
        children.trim().parse().ok()
    };
    let mut server = None;
    until("there is a process in the background", || {
        server = served_by(child.id());
        server.is_some()
    });
    kill(Pid::from_raw(server.unwrap()), Signal::SIGTERM).unwrap();
    let said = child.wait_with_output().unwrap();
    let text = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.status.code(), Some(8), "{text}");
    assert_eq!(
        text,
        "mount.sheepfs: ended by SIGTERM before the tree was mounted\n"
    );
    assert_eq!(said.status.signal(), None);
}

#[test]
fn mount_option_attaches_name_with_comma() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let address = sheep.address().to_string();
    let mount = |options: &str| {
        let arguments = [&*address, place.mnt.to_str().unwrap(), "-o", options];
        let said = output(program("mount.sheepfs").args(arguments));
        assert!(said.status.success());
    };
    let unmount = || {
        let status = Command::new("umount").arg(&place.mnt).status().unwrap();
        assert!(status.success());
    };
    mount("rw");
    for name in ["a,b", "plain"] {
        place.volume(name);
    }
    unmount();
    for options in [
        "attach=\"a,b\",attach=plain",
        "attach=a\\054b,attach=plain",
        "attach_all",
    ] {
        mount(options);
        let mut names: Vec<_> = fs::read_dir(place.mnt.join("volume"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["a,b", "plain"], "{options}");
        unmount();
    }
}
