//! Gateways for tests, with feature `testing`.

mod faulty;

pub use faulty::{Fault, Faulty};
