//! What an administrator may ask of any cluster and changes nothing that a
//! cluster of one node does: recovery, weights, the default redundancy.

use std::sync::Mutex;

use sha1::{Digest, Sha1};
use sheep_proto::statistics::RecoveryThrottle;
use sheep_proto::{HashResponse, Oid, ResponseBody, ResultCode};
use zerocopy::{FromBytes, IntoBytes};

use crate::call::{Answer, Call, Outcome};
use crate::cluster::Cluster;
use crate::poison::lock;
use crate::sheep::Sheep;

/// Bytes of an object that are digested at once: an object can have 2 GiB.
const DIGEST_PIECE: usize = 1 << 20;

/// Settings that are only shown again; forgotten with the process, as in a sheep.
#[derive(Default)]
pub(crate) struct Settings(Mutex<Values>);

#[derive(Clone, Copy, Default)]
struct Values {
    recovery_disabled: bool,
    throttle: RecoveryThrottle,
}

impl Settings {
    /// The byte that CLUSTER_INFO and STAT_CLUSTER show.
    pub(crate) fn recovery_disabled(&self) -> u8 {
        lock(&self.0).recovery_disabled.into()
    }
}

impl Sheep {
    /// ENABLE_RECOVER and DISABLE_RECOVER.
    pub(crate) fn disable_recovery(&self, is_disabled: bool) -> Outcome {
        lock(&self.settings.0).recovery_disabled = is_disabled;
        Ok(Answer::done())
    }

    /// GET_RECOVERY.
    pub(crate) fn recovery_throttle(&self, call: &Call<'_>) -> Outcome {
        let throttle = lock(&self.settings.0).throttle;
        call.answer_with(throttle.as_bytes().to_vec())
    }

    /// SET_RECOVERY.
    pub(crate) fn set_recovery_throttle(&self, call: &Call<'_>) -> Outcome {
        let throttle = RecoveryThrottle::read_from_bytes(call.data()?)
            .map_err(|_size| ResultCode::InvalidParms)?;
        lock(&self.settings.0).throttle = throttle;
        Ok(Answer::done())
    }

    /// ALTER_CLUSTER_COPY: the settings with another number of replicas for
    /// VDIs that do not say.
    pub(crate) fn alter_cluster_copy(&self, call: &Call<'_>) -> Result<Cluster, ResultCode> {
        let request = call.cluster_request();
        if request.copy_policy != 0 {
            return Err(ResultCode::InvalidParms);
        }
        call.formatted()?.with_copies(request.copies)
    }

    /// GET_HASH, which dog compares between nodes: the SHA-1 of a whole object.
    pub(crate) fn object_digest(&self, call: &Call<'_>) -> Outcome {
        let oid = Oid::from_raw(call.object().oid.get());
        let len = self.object_len(oid)?;
        let mut digest = Sha1::new();
        let mut piece = vec![0; len.min(DIGEST_PIECE)];
        for offset in (0..len).step_by(DIGEST_PIECE) {
            let piece = &mut piece[..DIGEST_PIECE.min(len - offset)];
            self.store.read(oid, offset as u64, piece)?;
            digest.update(piece);
        }
        Ok(Answer::body(ResponseBody::Hash(HashResponse {
            digest: digest.finalize().into(),
            ..HashResponse::default()
        })))
    }
}
