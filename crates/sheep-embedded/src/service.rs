//! What the requests do, grouped by the state that they need.
//!
//! A service has that state and no other. The cluster's settings are not part
//! of it: a handler that needs them is given those that the request was
//! accepted under, see [`crate::sheep`].

mod attribute;
mod cache;
mod cluster;
mod lock;
mod node;
mod object;
mod vdi;

pub(crate) use attribute::AttributeService;
pub(crate) use cache::CacheService;
pub(crate) use cluster::ClusterService;
pub(crate) use lock::LockService;
pub(crate) use node::NodeService;
pub(crate) use object::ObjectService;
pub(crate) use vdi::VdiService;
