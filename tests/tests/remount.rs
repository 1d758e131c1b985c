//! Remounting with mount(8), which switches between read-only and writable and changes
//! nothing else.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use tempfile::TempDir;
use tests::{Mounted, TestCluster, output, sheepfs_binary};

const LIMIT: Duration = Duration::from_secs(60);

/// In a mount namespace of its own, so that nothing is left: installs `$1`, and
/// links to it under the names in `$LINKS` as helpers of mount(8).
const INSTALL: &str = r#"
    helpers=$(realpath /sbin)
    mkdir old new mnt
    mount --bind "$helpers" old
    ln -s "$PWD"/old/* new/
    for link in sheepfs $LINKS; do ln -s "$1" "new/$link"; done
    mount --bind new "$helpers"
    address=$2 volume=$3 mnt=$PWD/mnt
    trap 'umount -l "$mnt"' EXIT
    show() { findmnt -n -o VFS-OPTIONS,FS-OPTIONS "$mnt" | tr -s ' '; }
    fill() { (echo "$2" > "mnt/$1") 2>&1 | sed 's/.*: //'; }
"#;
/// As the manual page says.
const LINKS: &str = "mount.sheepfs mount.fuse.sheepfs";

const READ_ONLY: &str =
    "ro,nosuid,nodev,noatime ro,user_id=0,group_id=0,default_permissions,allow_other";
const WRITABLE: &str =
    "rw,nosuid,nodev,noatime rw,user_id=0,group_id=0,default_permissions,allow_other";

/// Runs `script` and compares its output. The cluster at `$address` has a
/// volume `$volume`; `fstab` has a line for `$mnt`.
fn check(links: &str, script: &str, expected: &[&str]) -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let volume = cluster.unique_name("remount");
    let mounted = Mounted::start(&cluster, &[])?;
    mounted.create(&volume, "16M")?;
    mounted.stop()?;
    let directory = TempDir::with_prefix("sheepfs-test-remount-")?;
    let fstab = format!(
        "{} {}/mnt sheepfs _netdev,nofail,allow_other,attach={volume},pagecache,umask=027 0 0\n",
        cluster.address(),
        directory.path().display()
    );
    fs::write(directory.path().join("fstab"), fstab)?;
    let finished = output(
        LIMIT,
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec"])
            .arg(format!("{INSTALL}{script}"))
            .arg("sh")
            .arg(sheepfs_binary()?)
            .args([cluster.address(), &volume])
            .env("LINKS", links)
            .env("LC_ALL", "C")
            .current_dir(directory.path()),
    )?;
    let said = String::from_utf8(finished.stdout)?;
    ensure!(
        finished.status.success() && said.lines().eq(expected.iter().copied()),
        "{}: {said}{}",
        finished.status,
        finished.stderr
    );
    Ok(())
}

#[test]
fn remount_changes_write_permission_by_mountpoint() -> anyhow::Result<()> {
    let script = r#"
        mount -t sheepfs -o "attach=$volume,pagecache" "$address" mnt
        mount -o remount,ro "$mnt"
        show
        fill "volume/$volume" x
        fill vdi/create 'new 4M'
        fill config/page_cache 0
        mount -o remount "$mnt"
        show
        mount -o remount,rw "$mnt"
        show
        fill "volume/$volume" x
        head -n 1 "mnt/volume/$volume"
        cat mnt/config/page_cache"#;
    let refused = "Read-only file system";
    let expected = [
        READ_ONLY, refused, refused, refused, READ_ONLY, WRITABLE, "x", "1",
    ];
    check(LINKS, script, &expected)?;
    // Without the second link mount(8) goes through mount.fuse3(8).
    check("mount.sheepfs", script, &expected)
}

#[test]
fn remount_accepts_options_of_fstab() -> anyhow::Result<()> {
    let script = r#"
        mount -T fstab "$mnt"
        mount -T fstab -o remount,ro "$mnt"
        show
        mount -T fstab -o remount "$mnt"
        show
        : as systemctl reload does
        options=$(cut -d ' ' -f 4 fstab)
        mount "$address" "$mnt" -o "remount,ro,$options" -t sheepfs
        show
        mount "$address" "$mnt" -o "remount,$options" -t sheepfs
        show
        : called directly
        mount.sheepfs "$address" mnt -o remount,ro
        show
        sed s/umask=027/umask=077/ fstab > changed
        mount -T changed -o remount,rw "$mnt" 2>&1 || show"#;
    let refused = "mount.sheepfs: a remount can change only ro and rw, not umask: \
                   unmount it and mount it again";
    let expected = [
        READ_ONLY, WRITABLE, READ_ONLY, WRITABLE, READ_ONLY, refused, READ_ONLY,
    ];
    check(LINKS, script, &expected)
}

#[test]
fn remount_read_only_fails_while_loop_device_writes() -> anyhow::Result<()> {
    let script = r#"
        mount -t sheepfs -o "attach=$volume" "$address" mnt
        device=$(losetup --find --show "mnt/volume/$volume")
        mount -o remount,ro "$mnt" 2>&1 | grep -o 'close it, or detach its loop device'
        show
        echo data > "$device"
        sync "$device"
        losetup --detach "$device"
        until mount -o remount,ro "$mnt" 2> said; do grep -q 'open for writing' said; done
        show
        device=$(losetup --find --show --read-only "mnt/volume/$volume")
        head -n 1 "$device"
        losetup --detach "$device""#;
    let refused = "close it, or detach its loop device";
    check(LINKS, script, &[refused, WRITABLE, READ_ONLY, "data"])
}

#[test]
fn remount_refuses_every_other_change() -> anyhow::Result<()> {
    let script = r#"
        mount -t sheepfs -o "attach=$volume" "$address" mnt
        for option in attach=other attach_all pagecache objectcache allow_root retry_for=5 \
            connections=2 lock=off uid=7 gid=7 umask=022 pidfile=/tmp/none noexec; do
            said=$(mount -o "remount,ro,$option" "$mnt" 2>&1) && echo "$option is accepted"
            [ "${said#*can change only ro and rw, not ${option%=*}: unmount}" != "$said" ] || echo "$said"
        done
        mount -o remount,ro,colour=red "$mnt" 2>&1 || echo "$?"
        mount -t sheepfs -o remount,ro 192.0.2.1 "$mnt" 2>&1 | grep -o 'not the source'
        show
        umount mnt
        mount.sheepfs "$address" /proc -o remount,ro 2>&1 || echo "$?""#;
    let expected = [
        "mount.fuse.sheepfs: unknown mount option 'colour'",
        "1",
        "not the source",
        WRITABLE,
        "mount.sheepfs: cannot remount /proc: no sheepfs is mounted there",
        "32",
    ];
    // The mountpoint is free at the end, so the trap has nothing to do.
    check(LINKS, &format!("{script}; trap - EXIT"), &expected)
}
