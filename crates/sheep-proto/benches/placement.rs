//! Cost of finding the holder of an object in a cluster of 100 nodes.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use criterion::{Criterion, criterion_group, criterion_main};
use sheep_proto::node::NodeRecord;
use sheep_proto::placement::Ring;
use sheep_proto::{ObjectIndex, Oid, Vid};
use zerocopy::IntoBytes as _;

fn bench(criterion: &mut Criterion) {
    let nodes: Vec<_> = (0..100)
        .map(|number| {
            let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, number), 7000));
            NodeRecord::new(address, 128, number.into(), 1 << 40)
        })
        .collect();
    let ring = Ring::parse(nodes.as_bytes(), nodes.len()).expect("the records are whole");
    let vid = Vid::new(0xed_202b).expect("not zero");
    let mut index = 0;
    let mut next = || {
        index = (index + 1) % (1 << 20);
        Oid::data(vid, ObjectIndex(index))
    };
    criterion.bench_function("first holder", |bencher| {
        bencher.iter(|| black_box(&ring).holders(next()).next());
    });
    criterion.bench_function("three holders", |bencher| {
        bencher.iter(|| black_box(&ring).holders(next()).take(3).last());
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
