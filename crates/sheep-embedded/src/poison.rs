//! Taking locks of this process.
//!
//! A lock is poisoned if a thread has panicked while it held the lock. The state may be
//! half changed then, so the panic spreads to every user of the lock: its requests get
//! no response, and nothing is acknowledged that may not be stored.

use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

const INVARIANT: &str = "no thread panics while it holds a lock";

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect(INVARIANT)
}

pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().expect(INVARIANT)
}

pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().expect(INVARIANT)
}
