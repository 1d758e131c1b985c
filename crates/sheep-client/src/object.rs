//! Reading, writing, creating, discarding and removing objects.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sheep_proto::{Oid, RequestFlags};

use crate::connection::READ_BUFFER;
use crate::error::ClientError;
use crate::poison;
use crate::request::{Request, Response};
use crate::sender::{Sender, wake};
use crate::session::Session;
use crate::split_io::{FanOut, MAX_IO_LEN, check_range, join, split_io};
use crate::transport::Completion;

/// Objects, by their numbers; see [`Client::objects`](crate::Client::objects).
///
/// ```
/// use sheep_client::{Client, ClientConfig, NewVdi, ObjectIndex, Oid, VdiName};
/// # use sheep_embedded::{Config, Server, StoreKind};
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let server = Server::start(Config::new(StoreKind::Memory)).await?;
/// # let address = server.local_address();
/// # let client = Client::connect(ClientConfig::new(address.into())).await?;
/// let new = NewVdi::new(VdiName::new("v")?, 4 << 20);
/// let vid = client.cluster().create_vdi(&new).await?;
/// let object = Oid::data(vid, ObjectIndex(0));
/// client.objects().create(object, 0, "first".into(), None).await?;
/// assert_eq!(client.objects().read(object, 2, 3).await?, "rst");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Objects<'a> {
    pub(crate) sender: &'a Sender,
    cached_in: Option<Session>,
}

impl<'a> Objects<'a> {
    pub(crate) fn new(sender: &'a Sender) -> Self {
        Self {
            sender,
            cached_in: None,
        }
    }

    /// The same, with reads and writes that go through the object cache of the gateway
    /// of `session`, which must have one. A write is only in that cache when it is
    /// acknowledged; see [`ObjectCache::flush`](crate::ObjectCache::flush).
    ///
    /// They fail with [`ClientError::Lost`] or [`ClientError::SessionEnded`] when the
    /// session ends.
    #[must_use]
    pub fn through_cache(self, session: Session) -> Self {
        Self {
            cached_in: Some(session),
            ..self
        }
    }

    /// A read or a write, as this handle sends it.
    fn prepared(self, request: Request) -> Request {
        match self.cached_in {
            Some(session) => request
                .with_flags(RequestFlags::CACHE)
                .with_session(session),
            None => request,
        }
    }

    /// Reads `len` bytes at byte `offset` of an object and runs `on_complete` with
    /// them, where the last response is read.
    ///
    /// Does not block. More than 480 KiB are read with several requests, between
    /// which a write may be executed. The buffer for all of them is allocated now.
    ///
    /// # Panics
    /// When the range reaches beyond 4 GiB.
    pub fn submit_read(
        self,
        oid: Oid,
        offset: u32,
        len: u32,
        on_complete: impl FnOnce(Result<Bytes, ClientError>) + Send + 'static,
    ) {
        let mut recv_buffer = BytesMut::new();
        if len as usize > READ_BUFFER {
            recv_buffer.reserve(len as usize);
        }
        if len <= MAX_IO_LEN {
            check_range(offset, len);
            let request = self.prepared(Request::read_object(oid, offset, len));
            let request = request.with_recv_buffer(recv_buffer);
            let completion: Completion = Box::new(move |outcome| {
                let bytes = outcome.and_then(|response| response.object_bytes(len));
                on_complete(bytes.map(BytesMut::freeze));
            });
            return self.sender.submit(request, completion);
        }
        // Every response is received into its part of one buffer.
        let requests = split_io(offset, len)
            .map(|(offset, len)| {
                let rest = recv_buffer.split_off(recv_buffer.capacity().min(len as usize));
                let recv_buffer = std::mem::replace(&mut recv_buffer, rest);
                let request = self.prepared(Request::read_object(oid, offset, len));
                request.with_recv_buffer(recv_buffer)
            })
            .collect();
        self.submit_split(
            requests,
            |response, len| response.object_bytes(len),
            move |parts| {
                on_complete(parts.map(join));
            },
        );
    }

    /// Overwrites `data.len()` bytes at byte `offset` of an existing object and
    /// runs `on_complete` where the last response is read.
    ///
    /// Does not block. More than 480 KiB are written with several requests: when
    /// one fails, others may have written their part. None of them is in flight
    /// when `on_complete` runs, unless the error is [`ClientError::Unreachable`].
    ///
    /// # Panics
    /// When the range reaches beyond 4 GiB.
    pub fn submit_write(
        self,
        oid: Oid,
        offset: u32,
        data: Bytes,
        on_complete: impl FnOnce(Result<(), ClientError>) + Send + 'static,
    ) {
        let len = u32::try_from(data.len()).expect("an object has less than 4 GiB");
        if len <= MAX_IO_LEN {
            check_range(offset, len);
            let request = self.prepared(Request::write_object(oid, offset, data));
            let completion: Completion = Box::new(move |outcome| {
                on_complete(outcome.and_then(Response::into_result).map(drop))
            });
            return self.sender.submit(request, completion);
        }
        let requests = split_io(offset, len)
            .map(|(at, len)| {
                let from = (at - offset) as usize;
                let part = data.slice(from..from + len as usize);
                self.prepared(Request::write_object(oid, at, part))
            })
            .collect();
        self.submit_split(
            requests,
            |response, _| response.into_result().map(|_| BytesMut::new()),
            move |parts| {
                on_complete(parts.map(drop));
            },
        );
    }

    /// Reads `len` bytes at byte `offset` of an object.
    ///
    /// Never read past the end of the object: a sheep returns whatever its buffer
    /// contained.
    ///
    /// # Errors
    /// `Refused(NoObj)` for an object never created, `Malformed` when the
    /// response has not exactly `len` bytes, otherwise those of [every
    /// request](ClientError#every-request).
    ///
    /// # Panics
    /// When the range reaches beyond 4 GiB.
    ///
    /// Source: protocol 7.2.
    pub async fn read(self, oid: Oid, offset: u32, len: u32) -> Result<Bytes, ClientError> {
        self.sender
            .wait(|caller| {
                self.submit_read(oid, offset, len, |outcome| wake(caller, outcome));
            })
            .await
    }

    /// Overwrites `data.len()` bytes at byte `offset` of an existing object.
    ///
    /// Returns once the gateway reports the data on every replica. The request is
    /// replayed after a disconnect, so keep at most one write to the same bytes in
    /// flight. Slots of an index have
    /// [`Inode::write_slots`](crate::Inode::write_slots).
    ///
    /// # Errors
    /// `Refused(ReadOnly)` for an object of a snapshot, `Refused(NoObj)` for
    /// one never created, otherwise those of [every
    /// request](ClientError#every-request).
    ///
    /// # Panics
    /// When the range reaches beyond 4 GiB.
    ///
    /// Source: protocol 7.3.
    pub async fn write(self, oid: Oid, offset: u32, data: Bytes) -> Result<(), ClientError> {
        self.sender
            .wait(|caller| {
                self.submit_write(oid, offset, data, |outcome| wake(caller, outcome));
            })
            .await
    }

    /// Makes an object with `data` at byte `offset` and zeros elsewhere, or the
    /// bytes of `copy_from` elsewhere; **replaces** an object that is there.
    ///
    /// At most one create of an object may be in flight, and no write to it.
    /// The object is not part of its volume before its slot names it
    /// ([`Inode::write_slots`](crate::Inode::write_slots)).
    ///
    /// # Errors
    /// `Refused(ReadOnly)` for a snapshot's VID, `Refused(NoObj)` when
    /// `copy_from` is absent, `Refused(NoSpace)`, otherwise those of [every
    /// request](ClientError#every-request).
    ///
    /// # Panics
    /// When `data` is longer than 64 MiB.
    ///
    /// Source: protocol 7.3.
    pub async fn create(
        self,
        oid: Oid,
        offset: u32,
        data: Bytes,
        copy_from: Option<Oid>,
    ) -> Result<(), ClientError> {
        self.sender
            .send(Request::create_object(oid, offset, data, copy_from))
            .await
            .map(drop)
    }

    /// Clears a data object's slot and gives its space back; a missing object
    /// is a success.
    ///
    /// The sheep does not refuse this for a snapshot, where it destroys data of
    /// the working VDI: make sure first that the VID is still a working one.
    ///
    /// # Errors
    /// `Refused(NoObj)` when there is no such VDI, otherwise those of [every
    /// request](ClientError#every-request).
    ///
    /// Source: protocol 7.5.
    pub async fn discard(self, oid: Oid) -> Result<(), ClientError> {
        self.sender
            .send(Request::discard_object(oid))
            .await
            .map(drop)
    }

    /// Removes an object without looking at any index. Not for volumes.
    ///
    /// # Errors
    /// `Refused(NoObj)` when there is none, otherwise those of [every
    /// request](ClientError#every-request).
    pub async fn remove(self, oid: Oid) -> Result<(), ClientError> {
        self.sender
            .send(Request::remove_object(oid))
            .await
            .map(drop)
    }

    fn submit_split(
        self,
        requests: Vec<Request>,
        result: fn(Response, u32) -> Result<BytesMut, ClientError>,
        on_complete: impl FnOnce(Result<Vec<BytesMut>, ClientError>) + Send + 'static,
    ) {
        let fan_out = FanOut::new(requests.len(), on_complete);
        for (number, request) in requests.into_iter().enumerate() {
            let len = request.max_response_len();
            let fan_out = Arc::clone(&fan_out);
            let completion: Completion = Box::new(move |outcome| {
                let part = outcome.and_then(|response| result(response, len));
                let all = poison::lock(&fan_out).complete(number, part);
                if let Some((on_complete, outcome)) = all {
                    on_complete(outcome);
                }
            });
            self.sender.submit(request, completion);
        }
    }
}
