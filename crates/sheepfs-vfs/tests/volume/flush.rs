//! Flushes check that no snapshot has overwritten the index commits of earlier writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sheep_client::unstable::{BoxFuture, Request};
use sheep_proto::limits::INODE_HEADER_LEN;
use sheep_proto::{Generation, ObjectKind, Opcode, RequestBody};
use sheepfs_vfs::BlockDevice as _;
use tokio::sync::Notify;

use crate::support::{Cluster, delay_until, is_index_update, open, pattern};

/// One request that waits from now on.
#[derive(Default)]
struct Hold {
    armed: AtomicBool,
    held: Notify,
    release: Notify,
}

impl Hold {
    fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    fn apply(self: &Arc<Self>) -> Option<BoxFuture<'static, ()>> {
        let armed = self.armed.swap(false, Ordering::SeqCst);
        let hold = Arc::clone(self);
        armed.then(|| {
            hold.held.notify_one();
            let released: BoxFuture<'static, ()> =
                Box::pin(async move { hold.release.notified().await });
            released
        })
    }
}

fn is_header_read(request: &Request) -> bool {
    let RequestBody::Object(body) = request.header(Generation::V1_0).body() else {
        return false;
    };
    let kind = request.operation().oid.and_then(|oid| oid.kind());
    request.opcode() == Opcode::ReadObj
        && kind == Some(ObjectKind::Inode)
        && (body.offset.get() as usize) < INODE_HEADER_LEN
}

#[tokio::test]
async fn flush_checks_write_begun_during_another_flush() {
    let cluster = Cluster::start().await;
    let object = cluster.object_len();
    let name = cluster.create("flushes", 4 * object).await;
    let (check, commit): (Arc<Hold>, Arc<Hold>) = Default::default();
    let checks: Arc<AtomicUsize> = Arc::default();
    let (holds, counter) = (
        (Arc::clone(&check), Arc::clone(&commit)),
        Arc::clone(&checks),
    );
    let client = cluster
        .client_through(|inner| {
            delay_until(inner, move |request| {
                if is_header_read(request) {
                    counter.fetch_add(1, Ordering::SeqCst);
                    return holds.0.apply();
                }
                is_index_update(request).then(|| holds.1.apply())?
            })
        })
        .await;
    let volume = open(&client, &name).await;
    let flush = || {
        let volume = Arc::clone(&volume);
        tokio::spawn(async move { volume.flush().await.unwrap() })
    };
    // A flush is checking, and a second one waits for its turn.
    volume.write_at(0, pattern(1, 512)).await.unwrap();
    check.arm();
    let first = flush();
    check.held.notified().await;
    let second = flush();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    // A write begins, and commits only after the check of the first flush.
    commit.arm();
    let writer = Arc::clone(&volume);
    let write = tokio::spawn(async move { writer.write_at(object, pattern(2, 512)).await });
    commit.held.notified().await;
    check.release.notify_one();
    first.await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let before = checks.load(Ordering::SeqCst);
    commit.release.notify_one();
    write.await.unwrap().unwrap();
    second.await.unwrap();
    // A check after the commit belongs to the second flush, or to this one.
    volume.flush().await.unwrap();
    let after = checks.load(Ordering::SeqCst);
    assert!(after > before);
    // Nothing was written since.
    volume.flush().await.unwrap();
    assert_eq!(checks.load(Ordering::SeqCst), after);
    volume.close().await.unwrap();
}
