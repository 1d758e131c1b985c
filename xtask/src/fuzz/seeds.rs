//! The seed corpus of the fuzz targets: the captured frames, in the format that each
//! target reads, and a few lines of text as users write them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::slice;

use anyhow::Context as _;
use serde_json::Value;

use crate::step::root;

const CAPTURES: &str = "crates/sheep-proto/tests/golden";
/// What NBD clients sent, in hex.
const NBD_CAPTURES: &str = "crates/sheep-nbd/tests/golden";
/// Magic numbers of its options and requests, and the lengths of their headers.
const NBD_OPTION: &[u8] = b"IHAVEOPT";
const NBD_OPTION_LEN: usize = 16;
const NBD_REQUEST: [u8; 4] = [0x25, 0x60, 0x95, 0x13];
const NBD_REQUEST_LEN: usize = 28;
/// Bytes of a payload that are used; longer seeds only slow a target down.
const MAX_PAYLOAD: usize = 8192;
/// Bytes of a conversation that are used, for the same reason.
const MAX_STREAM: usize = 1 << 16;
/// Parsers of `decode_payloads`, chosen by the first byte.
const PARSERS: u8 = 10;
/// Actions of `malformed_responses`, chosen by the first byte: four reports, then volumes
/// that are writable, read-only, and locked.
const ACTIONS: [u8; 7] = [0, 1, 2, 3, 4, 0x14, 0x24];
/// Files that take a line, in the order in which `command_lines` has them.
const LINES: [&str; 10] = [
    "disk0@monday",
    "disk0",
    "disk0 10G copies=4:2 object_size=8M hyper prealloc",
    "disk0 monday",
    "disk0@monday disk1",
    "disk0@monday",
    "disk0 20G",
    "disk0@monday",
    "1",
    "[fe80::1]:7000",
];
const MOUNT_OPTIONS: [&str; 4] = [
    "ro,allow_other,pagecache",
    "_netdev,noauto,x-systemd.automount,retry_for=10,connections=4,port=7000",
    "attach=disk0,attach=disk0@monday,attach_all,lock=require,uid=0,gid=0,umask=022",
    "pidfile=/run/a\\,b,allow_root,noexec,comment=\"a,b\"",
];

/// One captured frame.
struct Frame {
    is_request: bool,
    header: Vec<u8>,
    /// Its payload, up to `MAX_STREAM` bytes.
    payload: Vec<u8>,
}

/// The frames of one connection, in their order.
type Conversation = Vec<Frame>;

/// Writes the seeds of a fuzz target to `corpus`, one file each; there are none for a
/// target that is not known here.
pub(super) fn write(target: &str, corpus: &Path) -> anyhow::Result<()> {
    let conversations = captured()?;
    fs::create_dir_all(corpus).with_context(|| corpus.display().to_string())?;
    let mut seeds = seeds(target, &conversations);
    if target == "nbd_messages" {
        seeds = nbd_messages()?;
    }
    for (number, seed) in seeds.iter().enumerate() {
        let path = corpus.join(format!("seed-{number}"));
        fs::write(&path, seed).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn seeds(target: &str, conversations: &[Conversation]) -> Vec<Vec<u8>> {
    let streams = |requests| conversations.iter().map(move |all| stream(all, requests));
    let responses = || conversations.iter().map(responses);
    match target {
        "decode_request" | "connection" => streams(true).collect(),
        "decode_response" => streams(false).collect(),
        "decode_payloads" => conversations
            .iter()
            .flatten()
            .map(|frame| &frame.payload[..frame.payload.len().min(MAX_PAYLOAD)])
            .collect::<BTreeSet<_>>()
            .into_iter()
            .flat_map(|payload| (0..PARSERS).map(move |parser| [&[parser], payload].concat()))
            .collect(),
        "malformed_responses" => responses()
            .zip(ACTIONS.iter().cycle())
            .map(|(responses, action)| [slice::from_ref(action), &responses].concat())
            .collect(),
        "command_lines" => responses()
            .zip((0..).zip(LINES).cycle())
            .map(|(responses, (file, line))| {
                let len = u8::try_from(line.len()).expect("seed lines are shorter than 256 bytes");
                [&[file, len], line.as_bytes(), &responses].concat()
            })
            .collect(),
        "mount_options" => MOUNT_OPTIONS.map(Vec::from).to_vec(),
        _ => Vec::new(),
    }
}

/// Every option and every request that NBD clients sent, each after the byte by which
/// `nbd_messages` chooses its parser.
fn nbd_messages() -> anyhow::Result<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    for entry in fs::read_dir(root().join(NBD_CAPTURES)).context(NBD_CAPTURES)? {
        let path = entry?.path();
        let text: String = fs::read_to_string(&path)?.split_whitespace().collect();
        let bytes = unhex(&Value::from(text)).with_context(|| path.display().to_string())?;
        for at in 0..bytes.len() {
            let rest = &bytes[at..];
            if rest.starts_with(NBD_OPTION) {
                let len = rest.get(12..NBD_OPTION_LEN).context("a cut option")?;
                let len = u32::from_be_bytes(len.try_into()?);
                let end = NBD_OPTION_LEN + usize::try_from(len)?;
                seeds.push([&[1], rest.get(..end).context("a cut option")?].concat());
            } else if rest.starts_with(&NBD_REQUEST) {
                let header = rest.get(..NBD_REQUEST_LEN).context("a cut request")?;
                seeds.push([&[3], header].concat());
            }
        }
    }
    Ok(seeds)
}

/// The frames of one direction as they were on the wire.
fn stream(conversation: &Conversation, requests: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in conversation {
        let len = frame.header.len() + frame.payload.len();
        if frame.is_request == requests && bytes.len() + len <= MAX_STREAM {
            bytes.extend_from_slice(&frame.header);
            bytes.extend_from_slice(&frame.payload);
        }
    }
    bytes
}

/// The responses of one connection in the format of `malformed_responses`: a result in
/// one byte, seven unused bytes, the rest of the header's tail, the payload.
fn responses(conversation: &Conversation) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in conversation.iter().filter(|frame| !frame.is_request) {
        let payload = &frame.payload[..frame.payload.len().min(MAX_PAYLOAD)];
        if bytes.len() + payload.len() <= MAX_STREAM {
            bytes.extend([frame.header[16], 0, 0, 0, 0, 0, 0, 0]);
            bytes.extend_from_slice(&frame.header[20..]);
            bytes.extend_from_slice(payload);
        }
    }
    bytes
}

fn captured() -> anyhow::Result<Vec<Conversation>> {
    let mut conversations = BTreeMap::<_, Conversation>::new();
    for entry in fs::read_dir(root().join(CAPTURES)).context(CAPTURES)? {
        let path = entry?.path();
        if path
            .extension()
            .is_none_or(|extension| extension != "jsonl")
        {
            continue;
        }
        for line in fs::read_to_string(&path)?.lines() {
            let record: Value = serde_json::from_str(line)?;
            if let Some(frame) = frame(&record).with_context(|| path.display().to_string())? {
                let connection = (path.clone(), record["conn"].as_u64());
                conversations.entry(connection).or_default().push(frame);
            }
        }
    }
    Ok(conversations.into_values().collect())
}

/// A line of a capture, unless it is a comment.
fn frame(record: &Value) -> anyhow::Result<Option<Frame>> {
    let Some(header) = record["hdr"].as_str() else {
        return Ok(None);
    };
    let is_request = record["dir"] == "req";
    // A stream continues only after a whole payload.
    let len = usize::try_from(record["len"].as_u64().context("len")?)?;
    let mut payload = vec![0; len.min(MAX_STREAM)];
    for piece in record["seg"].as_array().into_iter().flatten() {
        let offset = usize::try_from(piece[0].as_u64().context("offset")?)?;
        let bytes = match piece[1].as_u64() {
            Some(count) => unhex(&piece[2])?.repeat(usize::try_from(count)?),
            None => unhex(&piece[1])?,
        };
        for (place, byte) in payload.iter_mut().skip(offset).zip(bytes) {
            *place = byte;
        }
    }
    Ok(Some(Frame {
        is_request,
        header: unhex(&Value::from(header))?,
        payload,
    }))
}

fn unhex(text: &Value) -> anyhow::Result<Vec<u8>> {
    let text = text.as_str().context("hexadecimal text")?;
    let byte = |at| {
        Ok(u8::from_str_radix(
            text.get(at..at + 2).context("two digits")?,
            16,
        )?)
    };
    (0..text.len()).step_by(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nbd_seeds_have_options_and_requests() {
        let seeds = nbd_messages().unwrap();
        let count = |parser| seeds.iter().filter(|seed| seed[0] == parser).count();
        // Of nbdinfo, qemu-io and nbd-client.
        assert_eq!((count(1), count(3)), (13, 9));
    }
}
