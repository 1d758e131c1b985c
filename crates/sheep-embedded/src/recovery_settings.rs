//! What an administrator sets about the recovery of objects.
//!
//! A cluster of one node never recovers any, so the settings are only shown
//! again. They are forgotten with the process, as in a sheep.

use std::sync::Mutex;

use sheep_proto::statistics::RecoveryThrottle;

use crate::poison::lock;

/// See the module.
#[derive(Default)]
pub(crate) struct RecoverySettings(Mutex<Values>);

#[derive(Clone, Copy, Default)]
struct Values {
    disabled: bool,
    throttle: RecoveryThrottle,
}

impl RecoverySettings {
    pub(crate) fn is_disabled(&self) -> bool {
        lock(&self.0).disabled
    }

    pub(crate) fn set_disabled(&self, disabled: bool) {
        lock(&self.0).disabled = disabled;
    }

    pub(crate) fn throttle(&self) -> RecoveryThrottle {
        lock(&self.0).throttle
    }

    pub(crate) fn set_throttle(&self, throttle: RecoveryThrottle) {
        lock(&self.0).throttle = throttle;
    }
}
