//! Harness of the whole-system tests: guards that start something real and
//! take it away again when they are dropped.
//!
//! ```text
//! TestCluster ──► Mounted ──► a volume's file ──► LoopDevice ──► FileSystem
//! (a sheep)       (sheepfs)                       (losetup)      (mount)
//! ```
//!
//! A test runs against the cluster that `SHEEPFS_TEST_SHEEP` names (one for
//! all tests, so each test uses [`TestCluster::unique_name`] for its VDIs), or
//! starts a `sheep-embedded` of its own, like the releases of [`GENERATION_VARIABLE`]. A test that needs something this
//! machine lacks fails and names it.
//!
//! Knows the binaries and what they promise, and no crate of the workspace.

mod binaries;
mod bind_mount;
mod durability;
mod embedded_sheep;
mod file_handle;
mod file_system;
mod file_tree;
mod fio;
mod generation;
mod image;
mod iscsi_target;
mod load;
mod loop_device;
mod model;
mod mounted;
mod mounts;
mod nbd_server;
mod outage;
mod page_cache;
mod process;
mod program;
mod raw_sheep;
mod real_cluster;
mod test_cluster;
mod units;
mod volume_file;
mod wait;

pub use binaries::{sheep_embedded_binary, sheep_nbd_binary, sheepfs_binary};
pub use bind_mount::BindMount;
pub use durability::{AckPolicy, DurabilityChecker, Numbers};
pub use embedded_sheep::EmbeddedSheep;
pub use file_handle::FileHandle;
pub use file_system::FileSystem;
pub use file_tree::{TreeShape, assert_same_tree, make_tree};
pub use fio::Fio;
pub use generation::{GENERATION_VARIABLE, NEWEST_GENERATION, exists, generation};
pub use image::make_image;
pub use iscsi_target::IscsiTarget;
pub use load::{Acknowledged, Progress, under_load};
pub use loop_device::LoopDevice;
pub use model::{Model, seeded};
pub use mounted::{Mounted, is_capability_warning};
pub use mounts::{is_mounted, mounts_below};
pub use nbd_server::NbdServer;
pub use outage::outage;
pub use page_cache::{read_by_mmap, read_by_sendfile, read_by_splice};
pub use process::{is_running, send_signal, wait_for_exit};
pub use program::{Finished, output, run, run_within};
pub use raw_sheep::RawSheep;
pub use real_cluster::{RealCluster, RealSheep};
pub use test_cluster::{DOG_VARIABLE, SHEEP_BINARY_VARIABLE, SHEEP_VARIABLE, TestCluster};
pub use units::{MIB, MIB_U64};
pub use volume_file::{detach, errno, open};
pub use wait::{EVENT_LIMIT, free_ports, wait_until};
