//! The protocol's corners, by libnbd.

use tests::NbdServer;

use crate::{Fixture, libnbd};

#[test]
fn libnbd_checks_commands_flags_and_limits() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("corners", "16M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    libnbd(
        &server.uri(&name),
        r"
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.add_meta_context('sheepdog:depth')
h.add_meta_context('x:unknown')
h.connect_uri(uri)
h.set_strict_mode(0)
assert h.get_structured_replies_negotiated()
assert h.can_meta_context('sheepdog:depth') and not h.can_meta_context('x:unknown')
size = h.get_size()
assert size == 16 << 20

# any alignment, across objects
data = os.urandom(3 << 20)
h.pwrite(data, 12345)
assert h.pread(len(data), 12345) == data
assert h.pread(1, 12346) == data[1:2]

# chunks of a read, with its holes
chunks = []
def chunk(buffer, offset, status, error):
    chunks.append((offset, len(buffer), status))
h.pread_structured(16 << 20, 0, chunk)
assert sum(len for _, len, _ in chunks) == 16 << 20
assert {status for _, _, status in chunks} == {nbd.READ_DATA, nbd.READ_HOLE}
chunks.clear()
h.pread_structured(2 << 20, 1 << 20, chunk, nbd.CMD_FLAG_DF)
assert len(chunks) == 1, chunks

# block status of two contexts at once, and one extent alone
found = {}
def extents(context, offset, entries, error):
    found[context] = entries
h.block_status(16 << 20, 0, extents)
assert found['base:allocation'] == [4 << 20, 0, 12 << 20, 3], found
assert found['sheepdog:depth'] == [4 << 20, 1, 12 << 20, 0], found
h.block_status(size - 1000, 1000, extents, nbd.CMD_FLAG_REQ_ONE)
assert found['base:allocation'] == [(4 << 20) - 1000, 0], found

# zeroes: fast where an object is whole, refused where they would have to be written
h.zero(1 << 20, 1 << 20, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(1 << 20, 1 << 20) == bytearray(1 << 20)
raises(errno.ENOTSUP, lambda: h.zero(1 << 19, 100, nbd.CMD_FLAG_FAST_ZERO))
h.zero(1 << 20, 8 << 20, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.block_status(1 << 20, 8 << 20, extents)
assert found['base:allocation'] == [1 << 20, 0], found
h.trim(4 << 20, 0, nbd.CMD_FLAG_FUA)
h.block_status(4 << 20, 0, extents)
assert found['base:allocation'] == [4 << 20, 3], found
h.cache(4 << 20, 0)
h.flush()

# past the end, too long, nonsense
raises(errno.EINVAL, lambda: h.pread(2, size - 1))
raises(errno.ENOSPC, lambda: h.pwrite(b'ab', size - 1))
raises(errno.ENOSPC, lambda: h.zero(2, size - 1))
raises(errno.EINVAL, lambda: h.trim(2, size - 1))
raises(errno.EINVAL, lambda: h.cache(2, size - 1))
raises(errno.EINVAL, lambda: h.block_status(2, size - 1, extents))
raises(errno.EINVAL, lambda: h.pread((32 << 20) + 1, 0))
raises(errno.EINVAL, lambda: h.flush(nbd.CMD_FLAG_DF))
assert h.pread(1, 0) == bytearray(1)

# 64 requests in flight
buffers = [nbd.Buffer(4096) for _ in range(64)]
cookies = [h.aio_pread(buffer, at * 4096) for at, buffer in enumerate(buffers)]
while h.aio_in_flight() > 0:
    h.poll(-1)
for cookie in cookies:
    assert h.aio_command_completed(cookie)
h.shutdown()
",
    )?;
    server.stop()
}

#[test]
fn libnbd_negotiates_every_handshake_style() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("haggling", "8M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    libnbd(
        &server.uri(&name),
        r"
h.set_opt_mode(True)
h.connect_uri(uri)
names = []
h.opt_list(lambda name, description: names.append(name))
right = h.get_export_name()
assert names == [right], names
h.set_export_name('nope')
raises(errno.ENOENT, h.opt_info)
h.set_export_name(right)
h.opt_info()
assert h.get_size() == 8 << 20
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
assert 'base:allocation' in contexts and 'sheepdog:depth' in contexts, contexts
h.set_export_name('')
h.opt_go()
assert h.get_size() == 8 << 20
h.shutdown()

# simple replies alone, and the oldest way to choose an export
h = nbd.NBD()
h.set_request_structured_replies(False)
h.set_handshake_flags(0)
h.connect_uri(uri)
assert h.get_protocol() == 'newstyle', h.get_protocol()
h.pwrite(b'abc', 5)
assert h.pread(3, 5) == b'abc'
h.shutdown()
",
    )?;
    server.stop()
}

#[test]
fn flush_on_one_connection_covers_all() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("multi", "8M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    libnbd(
        &server.uri(&name),
        r"
h.connect_uri(uri)
assert h.can_multi_conn()
others = [nbd.NBD() for _ in range(4)]
for other in others:
    other.connect_uri(uri)
for round in range(8):
    for at, other in enumerate(others):
        other.pwrite(bytes([round + 1]) * 4096, (round << 20) + at * 4096)
    h.flush()
    for at, other in enumerate(others):
        place = (round << 20) + at * 4096
        assert others[at - 1].pread(4096, place) == bytes([round + 1]) * 4096
",
    )?;
    server.stop()
}
