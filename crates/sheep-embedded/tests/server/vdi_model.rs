//! Random lives of VDI families against a model: no VDI ever shows what
//! another wrote, and no object outlives the last index that names it.

use proptest::prelude::*;
use sheep_proto::{Oid, Opcode, ResultCode, Vid};

use crate::client::{Client, Sheep, data_oid};

/// Objects per VDI; few, so that VDIs often share and free them.
const OBJECTS: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Write { vdi: usize, index: u32, value: u8 },
    Discard { vdi: usize, index: u32 },
    Snapshot { vdi: usize },
    Clone { vdi: usize },
    Rebase { vdi: usize },
    Delete { vdi: usize },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let vdi = any::<prop::sample::Index>().prop_map(|index| index.index(1 << 16));
    let index = 0..OBJECTS;
    prop_oneof![
        8 => (vdi.clone(), index.clone(), 1u8..).prop_map(|(vdi, index, value)| Step::Write { vdi, index, value }),
        2 => (vdi.clone(), index).prop_map(|(vdi, index)| Step::Discard { vdi, index }),
        4 => vdi.clone().prop_map(|vdi| Step::Snapshot { vdi }),
        2 => vdi.clone().prop_map(|vdi| Step::Clone { vdi }),
        1 => vdi.clone().prop_map(|vdi| Step::Rebase { vdi }),
        3 => vdi.prop_map(|vdi| Step::Delete { vdi }),
        1 => Just(Step::Restart),
    ]
}

#[derive(Clone, Debug)]
struct Vdi {
    name: String,
    vid: Vid,
    snap_id: u32,
    is_snapshot: bool,
    content: [Option<u8>; OBJECTS as usize],
}

/// The living VDIs, and every VID there ever was.
struct Model {
    live: Vec<Vdi>,
    vids: Vec<Vid>,
}

impl Model {
    fn pick(&self, number: usize, wanted: impl Fn(&Vdi) -> bool) -> Option<usize> {
        let candidates: Vec<_> = (0..self.live.len())
            .filter(|&at| wanted(&self.live[at]))
            .collect();
        Some(*candidates.get(number % candidates.len().max(1))?)
    }

    fn add(&mut self, client: &mut Client, name: &str, vid: Vid, like: [Option<u8>; 3]) {
        self.vids.push(vid);
        self.live.push(Vdi {
            name: name.to_owned(),
            vid,
            snap_id: client.header_of(vid).snap_id.get(),
            is_snapshot: false,
            content: like,
        });
    }

    fn run(&mut self, client: &mut Client, step: &Step) {
        // Each step picks an existing VDI it is allowed for, or does nothing if there is none.
        match *step {
            Step::Write { vdi, index, value } => {
                if let Some(at) = self.pick(vdi, |vdi| !vdi.is_snapshot) {
                    let vid = self.live[at].vid;
                    write(client, vid, index, value);
                    self.live[at].content[index as usize] = Some(value);
                }
            }
            Step::Discard { vdi, index } => {
                if let Some(at) = self.pick(vdi, |vdi| !vdi.is_snapshot) {
                    let oid = data_oid(self.live[at].vid, index);
                    assert_eq!(client.discard(oid), ResultCode::Success);
                    self.live[at].content[index as usize] = None;
                }
            }
            Step::Snapshot { vdi } => {
                if let Some(at) = self.pick(vdi, |vdi| !vdi.is_snapshot) {
                    let old = self.live[at].clone();
                    let new = client.snapshot(&old.name, old.vid, "");
                    self.live[at].is_snapshot = true;
                    self.add(client, &old.name, new, old.content);
                }
            }
            // A new head on top of an older snapshot; the present head becomes a snapshot.
            Step::Rebase { vdi } => {
                let heads = self.live.clone();
                let has_head = |vdi: &Vdi| {
                    heads
                        .iter()
                        .any(|head| head.name == vdi.name && !head.is_snapshot)
                };
                if let Some(at) = self.pick(vdi, |vdi| vdi.is_snapshot && has_head(vdi)) {
                    let base = self.live[at].clone();
                    let new = client.snapshot(&base.name, base.vid, "");
                    for vdi in &mut self.live {
                        vdi.is_snapshot |= vdi.name == base.name;
                    }
                    self.add(client, &base.name, new, base.content);
                }
            }
            Step::Clone { vdi } => {
                if let Some(at) = self.pick(vdi, |vdi| vdi.is_snapshot) {
                    let base = self.live[at].clone();
                    let name = format!("clone-{}", self.vids.len());
                    let new = client.clone_vdi(&name, base.vid);
                    self.add(client, &name, new, base.content);
                }
            }
            Step::Delete { vdi } => {
                if let Some(at) = self.pick(vdi, |_| true) {
                    let gone = self.live.remove(at);
                    let snap_id = if gone.is_snapshot { gone.snap_id } else { 0 };
                    let response = client.vdi_request(Opcode::DelVdi, &gone.name, "", snap_id);
                    assert_eq!(response.vid(), gone.vid);
                }
            }
            Step::Restart => unreachable!("done by the caller"),
        }
    }

    /// Compares everything a client can see.
    fn check(&self, client: &mut Client) {
        let mut named = Vec::new();
        for vdi in &self.live {
            for index in 0..OBJECTS {
                let owner = client.slot(vdi.vid, index);
                let seen = owner.map(|owner| client.bytes(data_oid(owner, index), 9, 1)[0]);
                assert_eq!(
                    seen, vdi.content[index as usize],
                    "object {index} of {vdi:?}"
                );
                named.extend(owner.map(|owner| data_oid(owner, index)));
            }
        }
        for &vid in &self.vids {
            for index in 0..OBJECTS {
                let oid = data_oid(vid, index);
                assert_eq!(client.exists(oid), named.contains(&oid), "{oid}");
            }
        }
    }
}

/// Writes one byte as a client does.
fn write(client: &mut Client, vid: Vid, index: u32, value: u8) {
    let oid = data_oid(vid, index);
    let done = match client.slot(vid, index) {
        Some(owner) if owner == vid => client.write(oid, 9, &[value]),
        Some(owner) => {
            let copied = client.create_from(oid, data_oid(owner, index), 9, &[value]);
            assert_eq!(copied, ResultCode::Success);
            client.set_slot(vid, index, Some(vid))
        }
        None => {
            assert_eq!(client.create(oid, 9, &[value]), ResultCode::Success);
            client.set_slot(vid, index, Some(vid))
        }
    };
    assert_eq!(done, ResultCode::Success);
}

fn run_model(mut sheep: Sheep, steps: &[Step], may_restart: bool) {
    let mut client = sheep.connect();
    let mut model = Model {
        live: Vec::new(),
        vids: Vec::new(),
    };
    let first = client.new_vdi("demo");
    model.add(&mut client, "demo", first, [None; OBJECTS as usize]);
    for step in steps {
        if matches!(step, Step::Restart) {
            if may_restart {
                drop(client);
                sheep = sheep.restart();
                client = sheep.connect();
            }
        } else {
            model.run(&mut client, step);
        }
        model.check(&mut client);
    }
    for vid in &model.vids {
        assert!(client.exists(Oid::inode(*vid)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn snapshot_and_clone_model_isolates_vdis(steps in prop::collection::vec(step(), 1..40)) {
        run_model(Sheep::in_memory(), &steps, false);
    }

    #[test]
    fn snapshot_and_clone_model_survives_restarts(steps in prop::collection::vec(step(), 1..25)) {
        run_model(Sheep::in_directory(), &steps, true);
    }
}
