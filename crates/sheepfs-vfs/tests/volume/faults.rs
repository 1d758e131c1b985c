//! Calls that fail at random: what was acknowledged stays.

use sheep_client::testing::{Fault, Faulty};
use sheep_proto::ResultCode;

use crate::support::{Cluster, open, tag};

const SIZE: usize = (4 << 20) + 999;
const STEPS: usize = 400;

/// A byte of the model that a failed write may or may not have changed.
const UNKNOWN: u16 = 256;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_calls_that_fail() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let cluster = Cluster::start().await;
    let name = cluster.create("faults", SIZE as u64).await;
    let mut dice = fastrand::Rng::with_seed(seed);
    let client = cluster
        .client_through(|inner| {
            Faulty::new(inner, move |_call| match dice.u8(0..100) {
                0..3 => Some(Fault::LoseBefore),
                3..6 => Some(Fault::LoseAfter),
                6..8 => Some(Fault::Refuse(ResultCode::Eio)),
                _ => None,
            })
        })
        .await;
    let volume = loop {
        let selector = sheep_client::VdiSelector::working(name.clone());
        let options = sheepfs_vfs::VolumeOptions {
            read_only: false,
            lock: false,
        };
        if let Ok(volume) = sheepfs_vfs::Volume::open(client.clone(), selector, options).await {
            break volume;
        }
    };

    let mut rng = fastrand::Rng::with_seed(seed ^ 1);
    let mut model = vec![0u16; SIZE];
    let mut failures = 0;
    for step in 0..STEPS {
        let start = rng.usize(0..SIZE);
        let len = rng.usize(1..=(SIZE - start).min(200_000));
        let range = start..start + len;
        let offset = start as u64;
        let outcome = match rng.u8(0..100) {
            0..60 => {
                let byte = rng.u8(..);
                let written = volume.write_at(offset, vec![byte; len].into()).await;
                model[range].fill(if written.is_ok() {
                    u16::from(byte)
                } else {
                    UNKNOWN
                });
                written.map(drop)
            }
            60..80 => {
                let punched = volume.punch_hole(offset, len as u64).await;
                model[range].fill(if punched.is_ok() { 0 } else { UNKNOWN });
                punched
            }
            80..82 => {
                cluster
                    .client
                    .snapshot(&name, &tag(format!("s{step}")))
                    .await
                    .unwrap();
                Ok(())
            }
            _ => match volume.read_at(offset, u32::try_from(len).unwrap()).await {
                Ok(found) => {
                    assert_known(&found, &model[range], seed);
                    Ok(())
                }
                Err(error) => Err(error),
            },
        };
        failures += usize::from(outcome.is_err());
    }
    assert!(failures > 0, "no call failed");
    // A sync that succeeds has looked for a snapshot, and moved on if there was one.
    while volume.sync().await.is_err() {}
    drop(volume);
    let found = open(&cluster.client, &name).await;
    let found = found
        .read_at(0, u32::try_from(SIZE).unwrap())
        .await
        .unwrap();
    assert_known(&found, &model, seed);
}

fn assert_known(found: &[u8], model: &[u16], seed: u64) {
    let wrong = found
        .iter()
        .zip(model)
        .position(|(&byte, &known)| known != UNKNOWN && known != u16::from(byte));
    assert_eq!(wrong, None, "seed {seed}");
}
