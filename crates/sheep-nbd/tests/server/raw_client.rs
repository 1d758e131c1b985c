//! A client that writes its bytes by hand.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Longest wait for the server.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;
pub(crate) const OPT_EXTENDED_HEADERS: u32 = 11;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
pub(crate) const ERR_UNSUP: u32 = (1 << 31) + 1;
pub(crate) const ERR_INVALID: u32 = (1 << 31) + 3;
pub(crate) const ERR_UNKNOWN: u32 = (1 << 31) + 6;
pub(crate) const ERR_TOO_BIG: u32 = (1 << 31) + 9;
pub(crate) const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISCONNECT: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;
pub(crate) const PAYLOAD_LEN: u16 = 32;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const ENOTSUP: u32 = 95;
pub(crate) const ESHUTDOWN: u32 = 108;

/// A message of the transmission phase.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    /// Of a simple reply, or the one in an error chunk.
    pub(crate) error: u32,
    /// Of a chunk; `None` for a simple reply.
    pub(crate) kind: Option<u16>,
    pub(crate) is_last: bool,
    /// Of a chunk.
    pub(crate) payload: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct RawClient(pub(crate) UnixStream);

impl RawClient {
    pub(crate) async fn connect(socket: &Path) -> Self {
        let mut client = Self::greeted(socket).await;
        client.send(&3u32.to_be_bytes()).await;
        client
    }

    /// Before it has sent its flags.
    pub(crate) async fn greeted(socket: &Path) -> Self {
        let mut client = Self(UnixStream::connect(socket).await.unwrap());
        assert_eq!(client.receive(18).await, b"NBDMAGICIHAVEOPT\0\x03");
        client
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        timeout(LIMIT, self.0.write_all(bytes))
            .await
            .unwrap()
            .unwrap();
    }

    pub(crate) async fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        timeout(LIMIT, self.0.read_exact(&mut bytes))
            .await
            .unwrap()
            .unwrap();
        bytes
    }

    async fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.receive(2).await.try_into().unwrap())
    }

    pub(crate) async fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.receive(4).await.try_into().unwrap())
    }

    pub(crate) async fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.receive(8).await.try_into().unwrap())
    }

    /// Whether the server has closed the connection, perhaps with bytes before.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        // A reset is an end as well.
        drop(timeout(LIMIT, self.0.read_to_end(&mut rest)).await.unwrap());
        true
    }

    pub(crate) async fn option(&mut self, option: u32, data: &[u8]) {
        self.send(b"IHAVEOPT").await;
        self.send(&option.to_be_bytes()).await;
        self.send(&len(data)).await;
        self.send(data).await;
    }

    /// One reply to an option: its kind and its data.
    pub(crate) async fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.u64().await, 0x0003_e889_0455_65a9);
        assert_eq!(self.u32().await, option);
        let kind = self.u32().await;
        let len = self.u32().await;
        (kind, self.receive(len as usize).await)
    }

    /// All replies to an option, up to the acknowledgement or an error.
    pub(crate) async fn ask(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.option(option, data).await;
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option).await;
            let is_last = reply.0 == REP_ACK || reply.0 >= 1 << 31;
            replies.push(reply);
            if is_last {
                return replies;
            }
        }
    }

    /// The kind of the last reply to an option.
    pub(crate) async fn outcome(&mut self, option: u32, data: &[u8]) -> u32 {
        self.ask(option, data).await.pop().unwrap().0
    }

    pub(crate) async fn structured(&mut self) {
        assert_eq!(self.outcome(OPT_STRUCTURED_REPLY, b"").await, REP_ACK);
    }

    pub(crate) async fn extended(&mut self) {
        assert_eq!(self.outcome(OPT_EXTENDED_HEADERS, b"").await, REP_ACK);
    }

    /// Selects contexts and returns their names by id.
    pub(crate) async fn select(&mut self, export: &str, queries: &[&str]) -> Vec<(u32, String)> {
        let data = context_data(export, queries);
        contexts(self.ask(OPT_SET_META_CONTEXT, &data).await)
    }

    pub(crate) async fn go(&mut self, export: &str) -> (u64, u16) {
        let replies = self.ask(OPT_GO, &info_data(export)).await;
        assert_eq!(replies.last().unwrap().0, REP_ACK, "{replies:?}");
        export_info(&replies)
    }

    pub(crate) async fn request(
        &mut self,
        (command, flags): (u16, u16),
        cookie: u64,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        self.send(&bytes).await;
    }

    pub(crate) async fn extended_request(
        &mut self,
        (command, flags): (u16, u16),
        cookie: u64,
        offset: u64,
        len: u64,
        payload: &[u8],
    ) {
        let mut bytes = 0x21e4_1c71u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        self.send(&bytes).await;
    }

    /// The next message, without the data of a simple reply.
    pub(crate) async fn reply(&mut self) -> Reply {
        match self.u32().await {
            0x6744_6698 => {
                let error = self.u32().await;
                Reply {
                    error,
                    cookie: self.u64().await,
                    kind: None,
                    is_last: true,
                    payload: Vec::new(),
                }
            }
            0x668e_33ef => self.chunk(false).await,
            0x6e8a_278c => self.chunk(true).await,
            magic => panic!("a reply begins with {magic:08x}"),
        }
    }

    async fn chunk(&mut self, is_extended: bool) -> Reply {
        let is_last = self.u16().await == 1;
        let kind = self.u16().await;
        let cookie = self.u64().await;
        let len = match is_extended {
            true => {
                self.u64().await;
                usize::try_from(self.u64().await).unwrap()
            }
            false => self.u32().await as usize,
        };
        let payload = self.receive(len).await;
        let error = match kind >= 1 << 15 {
            true => u32::from_be_bytes(payload[..4].try_into().unwrap()),
            false => 0,
        };
        Reply {
            cookie,
            error,
            kind: Some(kind),
            is_last,
            payload,
        }
    }

    /// Sends a request and returns the error of its reply.
    pub(crate) async fn error_of(
        &mut self,
        command: (u16, u16),
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> u32 {
        self.request(command, 1, offset, len, payload).await;
        let reply = self.reply().await;
        assert!(reply.cookie == 1 && reply.is_last, "{reply:?}");
        reply.error
    }

    /// Reads with simple replies.
    pub(crate) async fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        assert_eq!(self.error_of((READ, 0), offset, len, b"").await, 0);
        self.receive(len as usize).await
    }

    /// Puts a structured read together.
    pub(crate) async fn read_chunks(&mut self, flags: u16, offset: u64, len: u32) -> Chunks {
        self.request((READ, flags), 2, offset, len, b"").await;
        let mut found = Chunks {
            bytes: vec![0xee; len as usize],
            data: 0,
            holes: 0,
        };
        loop {
            let reply = self.reply().await;
            assert_eq!((reply.cookie, reply.error), (2, 0));
            let place = |at: usize| {
                let from = u64::from_be_bytes(reply.payload[..8].try_into().unwrap());
                let start = usize::try_from(from - offset).unwrap();
                start..start + at
            };
            match reply.kind.unwrap() {
                0 => {}
                1 => {
                    let data = &reply.payload[8..];
                    found.bytes[place(data.len())].copy_from_slice(data);
                    found.data += 1;
                }
                2 => {
                    let len = u32::from_be_bytes(reply.payload[8..].try_into().unwrap());
                    found.bytes[place(len as usize)].fill(0);
                    found.holes += 1;
                }
                kind => panic!("a read is answered with {kind}"),
            }
            if reply.is_last {
                return found;
            }
        }
    }

    /// The extents of the only selected context.
    pub(crate) async fn extents(&mut self, flags: u16, offset: u64, len: u32) -> Vec<(u32, u32)> {
        self.request((BLOCK_STATUS, flags), 3, offset, len, b"")
            .await;
        let reply = self.reply().await;
        assert_eq!((reply.kind, reply.is_last), (Some(5), true), "{reply:?}");
        let pairs = reply.payload[4..].chunks_exact(8);
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        pairs
            .map(|pair| (number(&pair[..4]), number(&pair[4..])))
            .collect()
    }
}

/// What a structured read has brought.
#[derive(Debug)]
pub(crate) struct Chunks {
    pub(crate) bytes: Vec<u8>,
    pub(crate) data: usize,
    pub(crate) holes: usize,
}

fn len(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap().to_be_bytes()
}

pub(crate) fn info_data(export: &str) -> Vec<u8> {
    [&len(export.as_bytes())[..], export.as_bytes(), &[0, 0]].concat()
}

pub(crate) fn context_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = [&len(export.as_bytes())[..], export.as_bytes()].concat();
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(len(query.as_bytes()));
        data.extend(query.as_bytes());
    }
    data
}

/// Ids and names, of replies that end with an acknowledgement.
pub(crate) fn contexts(mut replies: Vec<(u32, Vec<u8>)>) -> Vec<(u32, String)> {
    assert_eq!(replies.pop().unwrap().0, REP_ACK);
    let context = |(kind, data): (u32, Vec<u8>)| {
        assert_eq!(kind, REP_META_CONTEXT);
        let id = u32::from_be_bytes(data[..4].try_into().unwrap());
        (id, String::from_utf8(data[4..].to_vec()).unwrap())
    };
    replies.into_iter().map(context).collect()
}

/// Size and flags among the replies to `INFO` or `GO`.
pub(crate) fn export_info(replies: &[(u32, Vec<u8>)]) -> (u64, u16) {
    let mut infos = replies.iter().filter(|(kind, _)| *kind == REP_INFO);
    let (_, info) = infos.find(|(_, data)| data[..2] == [0, 0]).unwrap();
    (
        u64::from_be_bytes(info[2..10].try_into().unwrap()),
        u16::from_be_bytes(info[10..].try_into().unwrap()),
    )
}
