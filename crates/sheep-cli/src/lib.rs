//! Common parts of the programs that use a Sheepdog cluster: options, logging,
//! daemonization, signals.
//!
//! | module | job |
//! |---|---|
//! | [`options`] | definitions of the options, for clap and for manual pages |
//! | [`environment`], [`usage_error`] | options from the environment; usage errors |
//! | [`cluster`], [`embedded`] | the checked options; a client of the cluster they select |
//! | [`daemon`], [`logging`], [`notify`], [`pidfile`], [`signals`] | running as a service |
//!
//! Knows nothing about mounts and exports.

#[cfg(feature = "process")]
pub mod cluster;
#[cfg(feature = "process")]
pub mod daemon;
#[cfg(feature = "process")]
pub mod embedded;
pub mod environment;
#[cfg(feature = "process")]
pub mod logging;
#[cfg(feature = "process")]
pub mod notify;
pub mod options;
#[cfg(feature = "process")]
pub mod pidfile;
#[cfg(feature = "process")]
pub mod signals;
pub mod usage_error;
