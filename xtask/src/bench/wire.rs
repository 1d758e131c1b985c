//! The raw wire: blocking sockets, one for each job, straight to the sheep.
//!
//! Nothing can be faster over this protocol with the same requests. A block is
//! one request here, of any size; sheepfs splits large ones.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use sheep_proto::limits::HEADER_LEN;
use sheep_proto::{
    ObjectIndex, ObjectRequest, Oid, Opcode, RequestBody, RequestFlags, RequestHeader,
    ResponseBody, ResponseHeader, ResultCode, VdiName, VdiRequest, Vid,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::work::Work;

/// Bytes of an object: all volumes here have the default.
const OBJECT: u64 = 4 << 20;
/// First index entry in an inode object.
const INDEX_OFFSET: u32 = 4664;

/// A volume, reached without any file system.
#[derive(Debug)]
pub(crate) struct Wire {
    sheep: SocketAddr,
    vid: Vid,
    /// In bytes.
    size: u64,
}

/// One connection with one request at a time.
struct Conversation {
    socket: TcpStream,
    answer: Vec<u8>,
}

impl Conversation {
    fn open(sheep: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(sheep).context("connecting to the sheep")?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            answer: Vec::new(),
        })
    }

    /// `want` is the length of the response payload, which goes to `answer`.
    fn ask(
        &mut self,
        opcode: Opcode,
        body: RequestBody,
        payload: &[u8],
        want: u32,
    ) -> anyhow::Result<ResponseHeader> {
        let (flags, len) = if payload.is_empty() {
            (RequestFlags::empty(), want)
        } else {
            (RequestFlags::WRITE, u32::try_from(payload.len())?)
        };
        let header = RequestHeader::new(opcode, flags, len, body);
        if payload.is_empty() {
            self.socket.write_all(header.as_bytes())?;
        } else {
            self.send_both(header.as_bytes(), payload)?;
        }
        let mut header = [0; HEADER_LEN];
        self.socket.read_exact(&mut header)?;
        let header = ResponseHeader::read_from_bytes(&header)
            .map_err(|_| anyhow::anyhow!("a header of another length"))?;
        self.answer.resize(header.data_length.get() as usize, 0);
        self.socket.read_exact(&mut self.answer)?;
        ensure!(
            header.result() == ResultCode::Success,
            "{opcode:?}: {}",
            header.result()
        );
        Ok(header)
    }

    fn send_both(&mut self, header: &[u8], payload: &[u8]) -> anyhow::Result<()> {
        let parts = [
            std::io::IoSlice::new(header),
            std::io::IoSlice::new(payload),
        ];
        let sent = self.socket.write_vectored(&parts)?;
        match sent.checked_sub(header.len()) {
            Some(of_payload) => self.socket.write_all(&payload[of_payload..])?,
            None => bail!("a socket that takes less than a header"),
        }
        Ok(())
    }
}

fn object(oid: Oid, offset: u32) -> RequestBody {
    RequestBody::Object(ObjectRequest {
        oid: oid.raw().into(),
        offset: offset.into(),
        ..ObjectRequest::default()
    })
}

impl Wire {
    /// Looks the volume's number up.
    pub(crate) fn open(sheep: SocketAddr, name: &str, size: u64) -> anyhow::Result<Self> {
        let mut payload = VdiName::new(name)?.to_field().to_vec();
        payload.resize(512, 0);
        let body = RequestBody::Vdi(VdiRequest::default());
        let header = Conversation::open(sheep)?.ask(Opcode::GetVdiInfo, body, &payload, 0)?;
        let ResponseBody::Vdi(found) = header.body() else {
            bail!("no VDI in the answer");
        };
        let vid = Vid::new(found.vdi_id.get()).context("VID 0")?;
        Ok(Self { sheep, vid, size })
    }

    /// Operations per second of all jobs together.
    pub(crate) fn run(&self, work: &Work, time: Duration) -> anyhow::Result<f64> {
        let start = Instant::now();
        let counts = thread::scope(|scope| {
            let jobs: Vec<_> = (0..work.jobs)
                .map(|job| scope.spawn(move || self.job(work, job, start + time)))
                .collect();
            jobs.into_iter()
                .map(|job| job.join().unwrap_or_else(|_| bail!("a job panicked")))
                .sum::<anyhow::Result<u64>>()
        })?;
        Ok(counts as f64 / start.elapsed().as_secs_f64())
    }

    fn job(&self, work: &Work, job: u32, end: Instant) -> anyhow::Result<u64> {
        let mut sheep = Conversation::open(self.sheep)?;
        let block = u64::from(work.block);
        let part = self.size / u64::from(work.jobs);
        let blocks = if work.random { self.size } else { part } / block;
        let base = if work.random {
            0
        } else {
            part * u64::from(job)
        };
        let mut random = fastrand::Rng::new();
        let payload = vec![0x5a; if work.write { work.block as usize } else { 0 }];
        let mut done = 0;
        while Instant::now() < end {
            let number = if work.random {
                random.u64(..blocks)
            } else {
                done % blocks
            };
            self.block(&mut sheep, base + number * block, &payload, work.block)?;
            done += 1;
        }
        Ok(done)
    }

    fn block(
        &self,
        sheep: &mut Conversation,
        at: u64,
        payload: &[u8],
        len: u32,
    ) -> anyhow::Result<()> {
        let oid = Oid::data(self.vid, ObjectIndex(u32::try_from(at / OBJECT)?));
        let body = object(oid, u32::try_from(at % OBJECT)?);
        if payload.is_empty() {
            sheep.ask(Opcode::ReadObj, body, &[], len)?;
            ensure!(sheep.answer.len() == len as usize, "a short read");
        } else {
            sheep.ask(Opcode::WriteObj, body, payload, 0)?;
        }
        Ok(())
    }

    /// One pass over a volume without any object: each is made with its first
    /// block, then named in the index. Returns operations per second.
    pub(crate) fn fill(&self, work: &Work) -> anyhow::Result<f64> {
        let mut sheep = Conversation::open(self.sheep)?;
        let payload = vec![0x5a; work.block as usize];
        let blocks = self.size / u64::from(work.block);
        let start = Instant::now();
        for number in 0..blocks {
            let at = number * u64::from(work.block);
            if at % OBJECT > 0 {
                self.block(&mut sheep, at, &payload, 0)?;
                continue;
            }
            let index = u32::try_from(at / OBJECT)?;
            let oid = Oid::data(self.vid, ObjectIndex(index));
            sheep.ask(Opcode::CreateAndWriteObj, object(oid, 0), &payload, 0)?;
            let slot = object(Oid::inode(self.vid), INDEX_OFFSET + 4 * index);
            sheep.ask(Opcode::WriteObj, slot, &self.vid.get().to_le_bytes(), 0)?;
        }
        Ok(blocks as f64 / start.elapsed().as_secs_f64())
    }
}
