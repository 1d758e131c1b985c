//! What goes out to the index of a VDI.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sheep_client::gateway::BoxFuture;
use sheep_client::{Call, VdiSelector};
use sheep_proto::limits::INODE_HEADER_LEN;
use sheep_proto::{ObjectKind, Opcode, RequestBody};

use crate::races::is_index_update;
use crate::support::{Cluster, Hold, open, pattern, tag, unique_name};

const MIB: u64 = 1 << 20;
const OBJECTS: u64 = 24;

/// Slots written, by VID and number, and requests they took.
#[derive(Default)]
struct Seen {
    slots: HashMap<(u32, u32), Vec<u32>>,
    requests: usize,
}

impl Seen {
    fn note(&mut self, call: &Call) {
        let oid = call.name().oid;
        let RequestBody::Object(body) = call.header(0).body() else {
            return;
        };
        let (offset, start) = (body.offset.get(), u32::try_from(INODE_HEADER_LEN).unwrap());
        let Some(oid) = oid.filter(|oid| oid.kind() == Some(ObjectKind::Inode)) else {
            return;
        };
        if call.opcode() != Opcode::WriteObj || offset < start {
            return;
        }
        self.requests += 1;
        let vid = oid.vid().unwrap().get();
        for (number, slot) in (0u32..).zip(call.payload().chunks_exact(4)) {
            let slot = u32::from_le_bytes(slot.try_into().unwrap());
            let index = (offset - start) / 4 + number;
            self.slots.entry((vid, index)).or_default().push(slot);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_slots_that_change_are_written_each_once_and_in_runs() {
    let cluster = Cluster::start().await;
    let base = cluster.create("wire-base", OBJECTS * MIB).await;
    let volume = open(&cluster.client, &base).await;
    volume.write_at(0, pattern(1, 24 << 20)).await.unwrap();
    cluster.client.snapshot(&base, &tag("s")).await.unwrap();
    let name = unique_name("wire");
    let parent = VdiSelector::tag(base, tag("s"));
    let vid = cluster
        .client
        .clone_vdi(&parent, &name)
        .await
        .unwrap()
        .get();

    let seen = Arc::new(Mutex::new(Seen::default()));
    let log = Arc::clone(&seen);
    let client = cluster
        .client_through(|inner| Hold {
            inner,
            until: move |call: &Call| -> Option<BoxFuture<'static, ()>> {
                log.lock().unwrap().note(call);
                // Slow enough for the others to gather behind the first few.
                is_index_update(call).then(|| {
                    Box::pin(tokio::time::sleep(Duration::from_millis(200)))
                        as BoxFuture<'static, ()>
                })
            },
        })
        .await;
    let volume = open(&client, &name).await;
    // All but every fourth object, from many tasks, several times each.
    let objects: Vec<u64> = (0..OBJECTS).filter(|object| object % 4 != 0).collect();
    let writes = objects.iter().flat_map(|&object| {
        (0..3u64).map({
            let volume = &volume;
            move |part| volume.write_at(object * MIB + part * 1000, pattern(2, 500))
        })
    });
    for written in futures_util::future::join_all(writes).await {
        written.unwrap();
    }
    volume.punch_hole(MIB, 2 * MIB).await.unwrap();
    volume.punch_hole(4 * MIB, MIB).await.unwrap();

    let seen = seen.lock().unwrap();
    for (&(of, index), values) in &seen.slots {
        assert_eq!(of, vid, "an index of another VDI was written");
        let expected = match index {
            1 | 2 => vec![vid, 0],
            4 => vec![0],
            _ => vec![vid],
        };
        assert_eq!(values, &expected, "slot {index}");
    }
    assert_eq!(seen.slots.len(), objects.len() + 1);
    assert!(seen.requests < objects.len(), "{} requests", seen.requests);
}
