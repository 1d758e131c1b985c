//! The smallest and the largest volumes, as files.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::thread;

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use tests::{MIB_U64, Mounted, RawSheep, TestCluster, errno, exists, open};

const TIB: u64 = 1 << 40;
/// Bytes of an object of a hypervolume.
const HYPER_OBJECT: u64 = 4 * MIB_U64;
/// Most slots that the root of a hypervolume's index has room for.
const ROOT_SLOTS: u32 = 524_287;

fn holds(file: &File, offset: u64, expected: &[u8]) -> anyhow::Result<()> {
    let mut found = vec![0; expected.len()];
    file.read_exact_at(&mut found, offset)
        .with_context(|| format!("reading at {offset}"))?;
    ensure!(found == expected, "at {offset}: {}", found.escape_ascii());
    Ok(())
}

#[test]
fn geometry_smallest_volumes_work() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for size in [0, 1, 511, 513, 4097] {
        let name = cluster.unique_name("small");
        let path = mounted.create(&name, &size.to_string())?;
        let file = open(&path)?;
        assert_eq!(file.metadata()?.len(), size);
        ensure!(fs::read(&path)? == vec![0; usize::try_from(size)?]);
        assert_eq!(errno(file.write_at(b"x", size)), Some(Errno::ENOSPC));
        if size > 0 {
            assert_eq!(file.write_at(b"the end", size - 1)?, 1);
        }
        file.set_len(size + 3)?;
        file.write_all_at(b"abc", size)?;
        assert_eq!(file.metadata()?.len(), size + 3);
        let mut expected = vec![0; usize::try_from(size)?];
        expected
            .last_mut()
            .into_iter()
            .for_each(|last| *last = b't');
        expected.extend(b"abc");
        ensure!(fs::read(&path)? == expected, "{size} bytes");
    }
    mounted.stop()
}

#[test]
fn geometry_largest_volumes_work_to_last_byte() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for (options, len, object) in [
        ("1T object_size=1M", TIB, MIB_U64),
        ("4T object_size=4M", 4 * TIB, 4 * MIB_U64),
        ("16T hyper", 16 * TIB, HYPER_OBJECT),
    ] {
        if !exists(options) {
            continue;
        }
        let name = cluster.unique_name("large");
        let path = mounted.create(&name, options)?;
        let file = open(&path)?;
        assert_eq!(file.metadata()?.len(), len);
        for offset in [0, len / 2 - 3, len / 4 * 3 + 12_345, len - 7] {
            file.write_all_at(b"written", offset)?;
        }
        assert_eq!(errno(file.write_at(b"x", len)), Some(Errno::ENOSPC));
        let data = lseek(file.as_fd(), i64::try_from(object)?, Whence::SeekData)?;
        assert_eq!(u64::try_from(data)?, len / 2 - object);
        if !options.contains("hyper") {
            // What no index can name.
            assert_eq!(errno(file.set_len(len + 1)), Some(Errno::EFBIG));
        }
        drop(file);
        let again = Mounted::start(&cluster, &[])?;
        let file = open(&again.attach(&name)?)?;
        for offset in [0, len / 2 - 3, len / 4 * 3 + 12_345, len - 7] {
            holds(&file, offset, b"written").with_context(|| options.to_owned())?;
        }
        holds(&file, len / 2 - 10, b"\0\0\0\0\0\0\0written\0\0\0\0\0\0")?;
        assert_eq!(file.metadata()?.blocks() * 512, 5 * object, "{options}");
        drop(file);
        again.stop()?;
    }
    mounted.stop()
}

/// The VID of a VDI.
fn vid(mounted: &Mounted, name: &str) -> anyhow::Result<u32> {
    let json: serde_json::Value = serde_json::from_str(&mounted.report("vdi/list.json")?)?;
    let vdis = json["vdis"].as_array().context("no list of VDIs")?;
    let vdi = vdis.iter().find(|vdi| vdi["name"] == name);
    let number = vdi.and_then(|vdi| vdi["vdi_id"].as_u64());
    Ok(u32::try_from(number.context("not listed")?)?)
}

#[test]
fn geometry_hypervolume_index_grows_under_load() -> anyhow::Result<()> {
    const WRITERS: u64 = 8;
    const OBJECTS_EACH: u64 = 12;
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("grows");
    mounted.command("vdi/create", format!("{name} 16T hyper"))?;
    let vid = vid(&mounted, &name)?;
    let mut sheep = RawSheep::connect(cluster.address())?;
    // Slots of the even objects, which do not exist, and room for some of the odd ones.
    let even: Vec<u32> = (0..ROOT_SLOTS - 40).map(|number| 2 * number).collect();
    sheep.fill_root(vid, &even)?;
    assert_eq!(sheep.root(vid)?.0, 1);

    // Writers of odd objects, all over the volume, which split the root.
    let path = mounted.attach(&name)?;
    let last = 16 * TIB / HYPER_OBJECT;
    let offset_of = |writer: u64, turn: u64| {
        let object = ((turn * WRITERS + writer) * 7_654_321 % last) | 1;
        object * HYPER_OBJECT + 1000 * writer
    };
    let text = |writer: u64, turn: u64| format!("writer {writer}, turn {turn}").into_bytes();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let path = &path;
                scope.spawn(move || {
                    let file = open(path)?;
                    for turn in 0..OBJECTS_EACH {
                        let (offset, text) = (offset_of(writer, turn), text(writer, turn));
                        file.write_all_at(&text, offset)?;
                        holds(&file, offset, &text)?;
                        // Next to it, in the object that exists by now.
                        file.write_all_at(&text, offset + 4096)?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| {
            writer
                .join()
                .expect("writer threads return errors instead of panicking")
        })
    })?;
    // The index has grown by a level, and a new mount finds every write.
    let (depth, leaves) = sheep.root(vid)?;
    ensure!(depth == 2 && leaves >= 2, "depth {depth}, {leaves} leaves");
    mounted.stop()?;

    let mounted = Mounted::start(&cluster, &[])?;
    let file = open(&mounted.attach(&name)?)?;
    for writer in 0..WRITERS {
        for turn in 0..OBJECTS_EACH {
            let (offset, text) = (offset_of(writer, turn), text(writer, turn));
            holds(&file, offset, &text)?;
            holds(&file, offset + 4096, &text)?;
        }
    }
    drop(file);
    mounted.stop()
}
