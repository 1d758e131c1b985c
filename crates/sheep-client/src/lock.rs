//! VDI locks. They exist only in clusters formatted with locking; elsewhere
//! locking is a lookup and releasing does nothing.
//!
//! A lock belongs to the sheep that was asked, not to a connection: it
//! survives the client's death, and anyone may release it (protocol 6.9).

use sheep_proto::header::{RequestBody, VdiRequest};
use sheep_proto::{Opcode, Vid};

use crate::call::{Call, Resend};
use crate::client::Client;
use crate::error::ClientError;
use crate::lookup::selector_call;
use crate::vdi::VdiSelector;

impl Client {
    /// Finds a VDI and locks it for this client's sheep alone.
    ///
    /// Not sent again when the connection is lost: the lock may have been taken.
    ///
    /// # Errors
    /// `Refused(VdiLocked)` when any sheep holds it, this one included;
    /// otherwise as [`Client::find`].
    ///
    /// Source: `LOCK_VDI`, protocol 5.2 and 6.9.
    pub async fn lock(&self, selector: &VdiSelector) -> Result<Vid, ClientError> {
        // A sheep that has just joined refuses until it knows all locks.
        let call = selector_call(Opcode::LockVdi, selector, VdiRequest::default())
            .with_resend(Resend::WhenRefused);
        self.call(call).await?.vid()
    }

    /// Gives a lock back, whoever holds it. Succeeds also when nobody does.
    ///
    /// # Errors
    /// As [`Client::call`].
    ///
    /// Source: `RELEASE_VDI`, protocol 5.2 and 6.9.
    pub async fn release(&self, vid: Vid) -> Result<(), ClientError> {
        let body = VdiRequest {
            base_vdi_id: vid.get().into(),
            ..VdiRequest::default()
        };
        let call =
            Call::new(Opcode::ReleaseVdi, RequestBody::Vdi(body)).with_resend(Resend::WhenLost);
        self.call(call).await.map(drop)
    }
}
