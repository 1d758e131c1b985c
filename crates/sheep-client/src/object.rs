//! Reading, writing, creating, discarding and removing objects.

use bytes::Bytes;
use sheep_proto::Oid;

use crate::call::Call;
use crate::client::{Client, wake};
use crate::error::ClientError;

impl Client {
    /// Reads `len` bytes at byte `offset` of an object.
    ///
    /// Never ask past the object's end: a sheep answers that with whatever its
    /// buffer held.
    ///
    /// # Errors
    /// `Refused(NoObj)` for an object never created, `Malformed` when the answer
    /// has not exactly `len` bytes, otherwise as [`Client::call`].
    ///
    /// # Panics
    /// When the range reaches beyond 4 GiB.
    ///
    /// Source: protocol 7.2.
    pub async fn read_object(&self, oid: Oid, offset: u32, len: u32) -> Result<Bytes, ClientError> {
        self.wait(|caller| self.submit_read(oid, offset, len, |outcome| wake(caller, outcome)))
            .await
    }

    /// Overwrites `data.len()` bytes at byte `offset` of an existing object.
    ///
    /// Returns once the gateway reports the data on every replica. Sent again
    /// when the gateway hangs up before it answers, so keep at most one write
    /// to the same bytes in flight. Slots of an index have
    /// [`Client::write_slots`].
    ///
    /// # Errors
    /// `Refused(ReadOnly)` for an object of a snapshot, `Refused(NoObj)` for
    /// one never created, otherwise as [`Client::call`].
    ///
    /// # Panics
    /// When the range reaches beyond 4 GiB.
    ///
    /// Source: protocol 7.3.
    pub async fn write_object(
        &self,
        oid: Oid,
        offset: u32,
        data: Bytes,
    ) -> Result<(), ClientError> {
        self.wait(|caller| self.submit_write(oid, offset, data, |outcome| wake(caller, outcome)))
            .await
    }

    /// Makes an object with `data` at byte `offset` and zeros elsewhere, or the
    /// bytes of `copy_from` elsewhere; **replaces** an object that is there.
    ///
    /// At most one create of an object may be in flight, and no write to it.
    /// The object is not part of its volume before its slot names it
    /// ([`Client::write_slots`]).
    ///
    /// # Errors
    /// `Refused(ReadOnly)` for a snapshot's VID, `Refused(NoObj)` when
    /// `copy_from` is absent, `Refused(NoSpace)`, otherwise as [`Client::call`].
    ///
    /// # Panics
    /// When `data` is longer than 64 MiB.
    ///
    /// Source: protocol 7.3.
    pub async fn create_object(
        &self,
        oid: Oid,
        offset: u32,
        data: Bytes,
        copy_from: Option<Oid>,
    ) -> Result<(), ClientError> {
        self.call(Call::create_object(oid, offset, data, copy_from))
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
    /// `Refused(NoObj)` when there is no such VDI, otherwise as [`Client::call`].
    ///
    /// Source: protocol 7.5.
    pub async fn discard_object(&self, oid: Oid) -> Result<(), ClientError> {
        self.call(Call::discard_object(oid)).await.map(drop)
    }

    /// Removes an object without looking at any index. Not for volumes.
    ///
    /// # Errors
    /// `Refused(NoObj)` when there is none, otherwise as [`Client::call`].
    pub async fn remove_object(&self, oid: Oid) -> Result<(), ClientError> {
        self.call(Call::remove_object(oid)).await.map(drop)
    }
}
