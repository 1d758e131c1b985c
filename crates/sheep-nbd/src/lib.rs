//! Volumes of a Sheepdog cluster as NBD exports, and an NBD server for any block
//! device.

pub mod protocol;
