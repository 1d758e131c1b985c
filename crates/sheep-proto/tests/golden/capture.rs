//! Reads the captures; their format is described in `README.md` beside them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sheep_proto::{RequestHeader, ResponseHeader};
use zerocopy::FromBytes as _;

/// Which way a frame travelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Request,
    Response,
}

/// A payload, kept in pieces because most of it is zero.
#[derive(Clone, Debug)]
pub(crate) struct Payload {
    pub(crate) len: usize,
    /// True when pieces are missing; the digest covers them nevertheless.
    pub(crate) cut: bool,
    digest: Option<String>,
    pieces: Vec<(usize, Vec<u8>)>,
}

/// One captured frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) capture: String,
    pub(crate) seq: u64,
    pub(crate) connection: u64,
    pub(crate) direction: Direction,
    /// The opcode's name as the capture has it.
    pub(crate) operation: String,
    pub(crate) header: [u8; 48],
    pub(crate) payload: Payload,
}

/// A request and what came back, if anything did.
pub(crate) struct Exchange {
    pub(crate) request: Frame,
    pub(crate) response: Option<Frame>,
}

impl Payload {
    /// All bytes of the payload; those that were cut off are zero.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        for (offset, piece) in &self.pieces {
            bytes[*offset..][..piece.len()].copy_from_slice(piece);
        }
        bytes
    }

    /// True when the bytes are those that were captured.
    pub(crate) fn is_authentic(&self) -> bool {
        match &self.digest {
            Some(digest) => hex(&Sha256::digest(self.bytes())) == *digest,
            None => self.len == 0,
        }
    }
}

impl Frame {
    /// The header of a request.
    pub(crate) fn request(&self) -> RequestHeader {
        assert_eq!(self.direction, Direction::Request, "{}", self.place());
        RequestHeader::read_from_bytes(&self.header).unwrap()
    }

    /// The header of a response.
    pub(crate) fn response(&self) -> ResponseHeader {
        assert_eq!(self.direction, Direction::Response, "{}", self.place());
        ResponseHeader::read_from_bytes(&self.header).unwrap()
    }

    /// Where the frame is found, for messages.
    pub(crate) fn place(&self) -> String {
        format!("{} frame {} ({})", self.capture, self.seq, self.operation)
    }
}

/// The captures of 1.0 in the order of their names.
pub(crate) fn captures() -> Vec<PathBuf> {
    captures_in("")
}

/// The captures of an older release, such as 0.7.5.
fn captures_in(release: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(release);
    let mut paths: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "jsonl"))
        .collect();
    paths.sort();
    paths
}

/// The frames of all captures.
pub(crate) fn all_frames() -> Vec<Frame> {
    captures().iter().flat_map(|path| frames(path)).collect()
}

/// The exchanges of all captures.
pub(crate) fn all_exchanges() -> Vec<Exchange> {
    captures()
        .iter()
        .flat_map(|path| exchanges(frames(path)))
        .collect()
}

/// The exchanges of all captures of an older release.
pub(crate) fn exchanges_of(release: &str) -> Vec<Exchange> {
    captures_in(release)
        .iter()
        .flat_map(|path| exchanges(frames(path)))
        .collect()
}

/// The capture's frame with a name that starts with `prefix`.
pub(crate) fn frame(prefix: &str, seq: u64) -> Frame {
    let path = captures()
        .into_iter()
        .find(|path| stem(path).starts_with(prefix))
        .unwrap();
    frames(&path)
        .into_iter()
        .find(|frame| frame.seq == seq)
        .unwrap()
}

fn stem(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

fn frames(path: &Path) -> Vec<Frame> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line.get("op").is_some())
        .map(|line| Frame {
            capture: stem(path).to_owned(),
            seq: number(&line["seq"]),
            connection: number(&line["conn"]),
            direction: match text(&line["dir"]) {
                "req" => Direction::Request,
                "rsp" => Direction::Response,
                other => panic!("unknown direction {other}"),
            },
            operation: text(&line["op"]).to_owned(),
            header: unhex(text(&line["hdr"])).try_into().unwrap(),
            payload: payload(&line),
        })
        .collect()
}

fn payload(line: &Value) -> Payload {
    let pieces = line.get("seg").map_or(&[][..], |pieces| {
        pieces.as_array().expect("a list of pieces")
    });
    Payload {
        len: length(&line["len"]),
        cut: line.get("cut").is_some_and(|cut| cut == true),
        digest: line.get("sha256").map(|digest| text(digest).to_owned()),
        pieces: pieces
            .iter()
            .map(|piece| match piece.as_array().unwrap().as_slice() {
                [offset, literal] => (length(offset), unhex(text(literal))),
                [offset, count, byte] => (length(offset), unhex(text(byte)).repeat(length(count))),
                other => panic!("a piece of {} parts", other.len()),
            })
            .collect(),
    }
}

/// Pairs each response with the latest request of its connection and id.
fn exchanges(frames: Vec<Frame>) -> Vec<Exchange> {
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut waiting = HashMap::new();
    for frame in frames {
        let id: [u8; 4] = frame.header[8..12].try_into().unwrap();
        let key = (frame.connection, id);
        match frame.direction {
            Direction::Request => {
                waiting.insert(key, exchanges.len());
                exchanges.push(Exchange {
                    request: frame,
                    response: None,
                });
            }
            Direction::Response => {
                let asked = waiting.remove(&key).expect("a response has a request");
                exchanges[asked].response = Some(frame);
            }
        }
    }
    exchanges
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn length(value: &Value) -> usize {
    usize::try_from(number(value)).unwrap()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 2, 0, "half a byte");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
