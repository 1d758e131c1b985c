//! Request flags.

bitflags::bitflags! {
    /// The 16 flag bits of a request header. Unknown bits are ignored by a sheep.
    ///
    /// Source: protocol 1.5.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RequestFlags: u16 {
        /// A payload of `data_length` bytes follows the header.
        const WRITE = 0x0001;
        /// A created object starts as a copy of `cow_oid`. On any other request for an
        /// object: bypass the object cache (servers before 1.0).
        const COW = 0x0002;
        /// Use the object cache (servers before 1.0).
        const CACHE = 0x0004;
        /// Write the object cache back and bypass it (servers before 1.0); on a write
        /// that can bring back old data.
        const DIRECT = 0x0008;
        /// Request and response both carry a payload.
        const PIGGYBACK = 0x0010;
        /// Take part in the inode coherence of shared locks.
        const TGT = 0x0020;
        /// Between sheep.
        const FWD = 0x0040;
        /// Between sheep.
        const RECOVERY = 0x0080;
        /// Attributes: set the value.
        const CREAT = 0x0100;
        /// Attributes: with `CREAT`, only when there is none.
        const EXCL = 0x0200;
        /// Attributes: delete.
        const DEL = 0x0400;
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// Settings chosen when a cluster is formatted.
    ///
    /// Source: protocol 5.5.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClusterFlags: u16 {
        /// Creates and writes halt while there are fewer zones than copies.
        const STRICT = 0x01;
        /// A build with a vnode per disk.
        const DISK_MODE = 0x02;
        /// Vnodes follow the size of a node's store.
        const AUTO_VNODES = 0x04;
        /// VDIs are locked while in use.
        const USE_LOCK = 0x08;
        /// VIDs of deleted VDIs are used again.
        const RECYCLE_VID = 0x10;
        /// No recovery that would fill the disks.
        const AVOID_DISK_FULL = 0x20;
        const _ = !0;
    }
}
