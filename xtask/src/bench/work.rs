//! The measurements, and their duration.

/// Access pattern of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Blocks of a fully allocated volume, past the page cache, for a while.
    Direct,
    /// One pass over a volume without any object, past the page cache.
    Thin,
    /// As `Direct`. An NBD client has all operations in flight on one connection.
    Nbd,
    /// One pass through the page cache, with nothing in it.
    ColdRead,
    /// One pass of small writes into the page cache, then `fsync`.
    CachedWrite,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) write: bool,
    /// Offsets at random, else one after the other.
    pub(crate) random: bool,
    /// Bytes of one operation.
    pub(crate) block: u32,
    /// Number of concurrent jobs, each with one operation in flight.
    pub(crate) jobs: u32,
}

const SMALL: u32 = 4 << 10;
const LARGE: u32 = 1 << 20;

const fn direct(name: &'static str, write: bool, random: bool, block: u32, jobs: u32) -> Work {
    Work {
        name,
        kind: Kind::Direct,
        write,
        random,
        block,
        jobs,
    }
}

const fn nbd(name: &'static str, write: bool, block: u32, depth: u32) -> Work {
    Work {
        name,
        kind: Kind::Nbd,
        write,
        random: block == SMALL,
        block,
        jobs: depth,
    }
}

const fn pass(name: &'static str, kind: Kind, write: bool, block: u32) -> Work {
    Work {
        name,
        kind,
        write,
        random: false,
        block,
        jobs: 1,
    }
}

/// Writing all of a volume once, before it is measured.
pub(crate) const FILL: Work = pass("filling", Kind::Thin, true, 4 << 20);
/// Many jobs with small random reads.
pub(crate) const MANY_READERS: Work = direct("4 KiB random read, 16 jobs", false, true, SMALL, 16);

pub(crate) const ALL: [Work; 19] = [
    direct("4 KiB random read, 1 job", false, true, SMALL, 1),
    MANY_READERS,
    direct("1 MiB sequential read, 1 job", false, false, LARGE, 1),
    direct(READ_4_JOBS, false, false, LARGE, 4),
    direct("4 KiB random write, 1 job", true, true, SMALL, 1),
    direct("4 KiB random write, 16 jobs", true, true, SMALL, 16),
    direct(WRITE_1_JOB, true, false, LARGE, 1),
    direct("1 MiB sequential write, 4 jobs", true, false, LARGE, 4),
    pass("1 MiB sequential write, thin", Kind::Thin, true, LARGE),
    pass("page cache: 1 MiB cold read", Kind::ColdRead, false, LARGE),
    pass(
        "page cache: 4 KiB write, fsync",
        Kind::CachedWrite,
        true,
        SMALL,
    ),
    nbd("NBD: 4 KiB random read, depth 1", false, SMALL, 1),
    nbd("NBD: 4 KiB random read, depth 32", false, SMALL, 32),
    nbd("NBD: 4 KiB random write, depth 1", true, SMALL, 1),
    nbd("NBD: 4 KiB random write, depth 32", true, SMALL, 32),
    nbd("NBD: 1 MiB sequential read, depth 1", false, LARGE, 1),
    nbd("NBD: 1 MiB sequential read, depth 32", false, LARGE, 32),
    nbd("NBD: 1 MiB sequential write, depth 1", true, LARGE, 1),
    nbd("NBD: 1 MiB sequential write, depth 32", true, LARGE, 32),
];

/// The work on the wire that reading through the page cache is compared with.
const READ_4_JOBS: &str = "1 MiB sequential read, 4 jobs";
/// The work on the wire that writing through the page cache is compared with.
const WRITE_1_JOB: &str = "1 MiB sequential write, 1 job";

impl Work {
    /// The work on the raw wire that this one is compared with: the wire has no page
    /// cache.
    pub(crate) fn on_the_wire(&self) -> &'static str {
        match self.kind {
            Kind::Direct | Kind::Nbd | Kind::Thin => self.name,
            Kind::ColdRead => READ_4_JOBS,
            Kind::CachedWrite => WRITE_1_JOB,
        }
    }
}
