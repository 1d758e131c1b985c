//! Taking locks of this process.
//!
//! A lock is poisoned if a thread has panicked while it held the lock. The state may be
//! half changed then, so the panic spreads to every user of the lock instead of a wrong
//! reply.

use std::sync::{Condvar, Mutex, MutexGuard};

const INVARIANT: &str = "no thread panics while it holds a lock";

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect(INVARIANT)
}

pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).expect(INVARIANT)
}
