//! What there is: lists, sizes, extents.

use std::process::Command;

use anyhow::ensure;
use serde_json::Value;
use tests::{NbdServer, free_ports, run};

use crate::{Fixture, program, text};

fn json(arguments: &[&str]) -> anyhow::Result<Value> {
    // Without file(1) it prints random bytes as the content.
    let mut all = vec!["--json", "--no-content"];
    all.extend(arguments);
    Ok(serde_json::from_str(&program("nbdinfo", &all)?)?)
}

#[test]
fn nbdinfo_lists_exports_with_flags_and_contexts() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("listed", "8M")?;
    fixture.command("vdi/snapshot", &format!("{name} monday"))?;
    let server = NbdServer::start(&fixture.cluster, &["--all"])?;
    let later = fixture.create("later", "16M")?;
    let list = json(&["--list", &server.uri("")])?;
    let exports = list["exports"].as_array().expect("a list");
    let find = |name: &str| exports.iter().find(|export| export["export-name"] == name);
    let snapshot = format!("{name}@monday");
    for (name, size, read_only) in [(&name, 8, false), (&later, 16, false), (&snapshot, 8, true)] {
        let export = find(name).expect("it is listed");
        ensure!(export["export-size"] == size << 20, "{export:#}");
        ensure!(export["is_read_only"] == read_only, "{export:#}");
        for feature in ["can_multi_conn", "can_flush", "can_df", "can_cache"] {
            ensure!(export[feature] == true, "{feature}: {export:#}");
        }
        for feature in ["can_fua", "can_trim", "can_zero", "can_fast_zero"] {
            ensure!(export[feature] == !read_only, "{feature}: {export:#}");
        }
        ensure!(export["is_rotational"] == false, "{export:#}");
        ensure!(export["block_size_minimum"] == 1 && export["block_size_maximum"] == 32 << 20);
    }
    let contexts = find(&name).expect("it is listed")["contexts"].to_string();
    for context in [
        "base:allocation",
        "sheepdog:depth",
        "qemu:allocation-depth",
        "sheepdog:changed-since:monday",
        "qemu:dirty-bitmap:changed-since-monday",
    ] {
        ensure!(contexts.contains(&format!("{context:?}")), "{contexts}");
    }
    // A client that leaves in the handshake is nothing to warn about.
    let log = server.log();
    ensure!(!log.contains("WARN"), "{log}");
    server.stop()
}

#[test]
fn nbd_client_lists_exports_over_tcp() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("tcp", "8M")?;
    let port = free_ports(1)?[0].to_string();
    let listen = format!("--listen=:{port}");
    let _server = NbdServer::start(&fixture.cluster, &["--all", &listen])?;
    let list = program("nbd-client", &["-l", "127.0.0.1", &port])?;
    ensure!(list.contains(&name), "{list}");
    let size = program(
        "nbdinfo",
        &["--size", &format!("nbd://127.0.0.1:{port}/{name}")],
    )?;
    ensure!(size == "8388608\n", "{size}");
    Ok(())
}

/// Offset, length and type of the extents in a context.
fn map(uri: &str, context: &str) -> anyhow::Result<Vec<(u64, u64, u64)>> {
    let found = json(&[&format!("--map={context}"), uri])?;
    let number = |value: &Value| value.as_u64().expect("a number");
    let extents = found.as_array().expect("a list").iter();
    Ok(extents
        .map(|extent| {
            let (offset, len) = (number(&extent["offset"]), number(&extent["length"]));
            (offset >> 20, len >> 20, number(&extent["type"]))
        })
        .collect())
}

#[test]
fn nbdinfo_maps_every_context() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("mapped", "8M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    let uri = server.uri(&name);
    let io = |commands: &[&str]| {
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.args(["-f", "raw"]);
        commands.iter().for_each(|command| {
            qemu_io.args(["-c", command]);
        });
        run(qemu_io.arg(&uri))
    };
    io(&["write 0 3M"])?;
    ensure!(map(&uri, "base:allocation")? == [(0, 3, 0), (3, 5, 3)]);
    fixture.command("vdi/snapshot", &format!("{name} monday"))?;
    io(&["write 1M 1k", "write 6M 1k"])?;
    let depth = [
        (0, 1, 2),
        (1, 1, 1),
        (2, 1, 2),
        (3, 3, 0),
        (6, 1, 1),
        (7, 1, 0),
    ];
    let changed = [(0, 1, 0), (1, 1, 1), (2, 4, 0), (6, 1, 1), (7, 1, 0)];
    for (context, expected) in [
        ("sheepdog:depth", &depth[..]),
        ("qemu:allocation-depth", &depth),
        ("sheepdog:changed-since:monday", &changed),
        ("qemu:dirty-bitmap:changed-since-monday", &changed),
    ] {
        let found = map(&uri, context)?;
        ensure!(found == expected, "{context}: {found:?}");
    }
    // What QEMU makes of the bitmap: changed is what it must copy.
    let source = format!(
        "driver=nbd,server.type=unix,server.path={},export={name},\
         x-dirty-bitmap=qemu:dirty-bitmap:changed-since-monday",
        server.socket().display()
    );
    let options = ["map", "--output=json", "--image-opts", &source];
    let map: Value = serde_json::from_str(&program("qemu-img", &options)?)?;
    let dirty: Vec<_> = map
        .as_array()
        .expect("a list")
        .iter()
        .filter(|extent| extent["data"] == false)
        .map(|extent| extent["start"].as_u64().expect("a number") >> 20)
        .collect();
    ensure!(dirty == [1, 6], "{map:#}");
    server.stop()
}

#[test]
fn read_only_export_refuses_writes() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("frozen", "8M")?;
    fixture.command("vdi/snapshot", &format!("{name} monday"))?;
    let snapshot = format!("{name}@monday");
    let server = NbdServer::start(&fixture.cluster, &["--read-only", &name, &snapshot])?;
    for export in [&name, &snapshot] {
        let info = json(&[&server.uri(export)])?;
        ensure!(info["exports"][0]["is_read_only"] == true, "{info:#}");
    }
    let read = [
        "-r",
        "-f",
        "raw",
        "-c",
        "read -P 0 0 8M",
        &server.uri(&snapshot),
    ];
    let printed = text(Command::new("qemu-io").args(read))?;
    ensure!(!printed.contains("failed"), "{printed}");
    server.stop()
}
