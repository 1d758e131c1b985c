//! Frames made by the test, for states that no program creates: an index with half a
//! million objects that do not exist.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::ensure;

/// Longest wait for a response.
const LIMIT: Duration = Duration::from_secs(60);
const CREATE_AND_WRITE_OBJ: u8 = 0x01;
const READ_OBJ: u8 = 0x02;
const WRITE_OBJ: u8 = 0x03;
/// A payload follows the request.
const WRITE: u16 = 0x01;
/// Where the root of a hypervolume's index is in the inode.
const ROOT: u32 = 4664;
/// Where the number of the next B-tree object is.
const COUNTER: u32 = 568;

/// A connection to a sheep.
#[derive(Debug)]
pub struct RawSheep(TcpStream);

impl RawSheep {
    /// Connects to `HOST:PORT`.
    ///
    /// # Errors
    /// If the connection is refused.
    pub fn connect(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self(stream))
    }

    fn call(
        &mut self,
        opcode: u8,
        (oid, offset): (u64, u32),
        data: Option<&[u8]>,
        want: usize,
    ) -> anyhow::Result<Vec<u8>> {
        let len = u32::try_from(data.map_or(want, <[u8]>::len))?;
        let mut header = [0; 48];
        header[0] = 2;
        header[1] = opcode;
        header[2..4].copy_from_slice(&data.map_or(0, |_| WRITE).to_le_bytes());
        header[12..16].copy_from_slice(&len.to_le_bytes());
        header[16..24].copy_from_slice(&oid.to_le_bytes());
        header[40..44].copy_from_slice(&offset.to_le_bytes());
        self.0.write_all(&header)?;
        self.0.write_all(data.unwrap_or_default())?;
        self.0.read_exact(&mut header)?;
        let number = |at: usize| {
            u32::from_le_bytes(
                header[at..at + 4]
                    .try_into()
                    .expect("the slice has four bytes"),
            )
        };
        let (len, result) = (number(12), number(16));
        let mut payload = vec![0; usize::try_from(len)?];
        self.0.read_exact(&mut payload)?;
        ensure!(
            result == 0,
            "opcode {opcode:#x} of {oid:016x}: result {result:#x}"
        );
        Ok(payload)
    }

    /// Depth and number of entries of the root of a hypervolume's index.
    ///
    /// # Errors
    /// When there is no such VDI.
    pub fn root(&mut self, vid: u32) -> anyhow::Result<(u8, u32)> {
        let node = self.call(READ_OBJ, (inode(vid), ROOT), None, 8)?;
        Ok((node[2], u32::from_le_bytes(node[4..8].try_into()?)))
    }

    /// Makes the index of a fresh hypervolume one leaf, in the root, that names
    /// `objects`.
    ///
    /// # Errors
    /// When the sheep refuses.
    pub fn fill_root(&mut self, vid: u32, objects: &[u32]) -> anyhow::Result<()> {
        self.write_root(vid, &leaf(vid, objects))
    }

    /// Makes it a tree with these leaves.
    ///
    /// # Errors
    /// When the sheep refuses.
    pub fn fill_leaves(&mut self, vid: u32, leaves: &[&[u32]]) -> anyhow::Result<()> {
        let count = u32::try_from(leaves.len())?;
        let mut root = node(2, count);
        for (number, objects) in (0u64..).zip(leaves) {
            let oid = 1 << 60 | u64::from(vid) << 32 | number;
            let mut bytes = leaf(vid, objects);
            bytes.resize(4 << 20, 0);
            self.call(CREATE_AND_WRITE_OBJ, (oid, 0), Some(&bytes), 0)?;
            let max = objects.last().copied().unwrap_or_default();
            root.extend(u64::from(max).to_le_bytes());
            root.extend(oid.to_le_bytes());
        }
        let counter = count.to_le_bytes();
        self.call(WRITE_OBJ, (inode(vid), COUNTER), Some(&counter), 0)?;
        self.write_root(vid, &root)
    }

    /// Makes data object `number` with `bytes` in front, and leaves the index
    /// alone.
    ///
    /// # Errors
    /// When the sheep refuses.
    pub fn make_object(&mut self, vid: u32, number: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let oid = u64::from(vid) << 32 | u64::from(number);
        self.call(CREATE_AND_WRITE_OBJ, (oid, 0), Some(bytes), 0)
            .map(drop)
    }

    /// A write within the index area alone would be taken for one of a flat
    /// index.
    fn write_root(&mut self, vid: u32, root: &[u8]) -> anyhow::Result<()> {
        let bytes = [&[0; 8], root].concat();
        let place = (inode(vid), ROOT - 8);
        self.call(WRITE_OBJ, place, Some(&bytes), 0).map(drop)
    }
}

fn inode(vid: u32) -> u64 {
    1 << 63 | u64::from(vid) << 32
}

fn node(depth: u8, entries: u32) -> Vec<u8> {
    let mut bytes = vec![0x74, 0x62, depth, 0];
    bytes.extend(entries.to_le_bytes());
    bytes
}

fn leaf(vid: u32, objects: &[u32]) -> Vec<u8> {
    let count = u32::try_from(objects.len()).expect("a leaf has at most 524,287 entries");
    let mut bytes = node(1, count);
    for object in objects {
        bytes.extend(object.to_le_bytes());
        bytes.extend(vid.to_le_bytes());
    }
    bytes
}
