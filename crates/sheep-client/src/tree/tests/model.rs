//! Random lives of a tree with small nodes, cut off anywhere, against a map.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sheep_proto::btree::LeafEntry;
use sheep_proto::{ObjectIndex, Vid};

use super::objects::Objects;
use crate::tree::IndexTree;
use crate::tree::nodes::Capacity;

type Map = BTreeMap<u32, Vid>;

#[derive(Clone, Debug)]
enum Step {
    /// Slots are set, in one plan.
    Insert(Map),
    /// The same, but only some of the writes are made; then the tree is read.
    CutOff(Map, prop::sample::Index),
    /// The tree is read anew.
    Read,
    /// The server makes a slot a hole.
    Discard(u32),
    /// The C program stores a wrong maximum, and takes the leaf's slots for missing.
    Hide(prop::sample::Index, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let vid = (1u32..4).prop_map(|raw| Vid::new(raw).unwrap());
    let slots = prop::collection::btree_map(0u32..120, vid, 0..14);
    let far = (0u32..120, 1u32..30, 1u32..12).prop_map(|(first, count, apart)| {
        let indexes = (0..count).map(|number| first + number * apart);
        indexes.map(|index| (index, super::vid())).collect()
    });
    let slots = prop_oneof![3 => slots, 1 => far];
    prop_oneof![
        6 => slots.clone().prop_map(Step::Insert),
        3 => (slots, any::<prop::sample::Index>()).prop_map(|(slots, at)| Step::CutOff(slots, at)),
        1 => Just(Step::Read),
        1 => (0u32..120).prop_map(Step::Discard),
        1 => (any::<prop::sample::Index>(), 0u32..120).prop_map(|(at, index)| Step::Hide(at, index)),
    ]
}

fn owners(tree: &IndexTree) -> Map {
    let slots: Vec<_> = tree.slots().map(|(index, vid)| (index.0, vid)).collect();
    assert!(slots.is_sorted_by(|a, b| a.0 < b.0), "{slots:?}");
    slots.into_iter().collect()
}

/// Everything in `before` is in `found`, as it was or as `set` says, and
/// nothing is there that is in neither.
fn check_between(before: &Map, set: &Map, found: &Map) -> Result<(), TestCaseError> {
    for (index, old) in before {
        let now = found.get(index);
        prop_assert!(
            now == Some(old) || (now.is_some() && now == set.get(index)),
            "slot {index} was {old:?} and is {now:?}"
        );
    }
    for (index, now) in found {
        prop_assert!(before.get(index) == Some(now) || set.get(index) == Some(now));
    }
    Ok(())
}

struct BtreeModel {
    objects: Objects,
    tree: IndexTree,
    model: Map,
    /// Whether the C programs find everything too.
    is_sound: bool,
}

impl BtreeModel {
    fn new(capacity: Capacity) -> Self {
        let objects = Objects::empty(super::vid(), capacity);
        Self {
            tree: objects.read(),
            objects,
            model: Map::new(),
            is_sound: true,
        }
    }

    fn apply(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Insert(slots) => {
                self.plan_and_write(&slots, None)?;
                self.model.extend(slots);
                self.is_sound = true;
                prop_assert_eq!(&owners(&self.tree), &self.model);
            }
            Step::CutOff(slots, at) => {
                self.plan_and_write(&slots, Some(at))?;
                self.read_again();
                self.model = owners(&self.tree);
            }
            Step::Read => self.read_again(),
            Step::Discard(index) => {
                // The server finds the slot like the C programs.
                if self.is_sound && self.model.remove(&index).is_some() {
                    self.tree.mark_hole(ObjectIndex(index));
                    let set_in_place = self.objects.discard(index);
                    prop_assert!(set_in_place);
                }
            }
            Step::Hide(at, index) => {
                let leaves = self.objects.keys().len();
                let slot = LeafEntry::new(ObjectIndex(index), Some(super::vid()));
                if self.is_sound && leaves > 1 && self.objects.hide_leaf(at.index(leaves), slot) {
                    self.is_sound = false;
                    self.model.insert(index, super::vid());
                    self.read_again();
                }
            }
        }
        prop_assert_eq!(&owners(&self.objects.read()), &self.model);
        if self.is_sound {
            for (&index, &owner) in &self.model {
                prop_assert_eq!(self.objects.lookup(index), Some(owner), "slot {}", index);
            }
        }
        Ok(())
    }

    fn read_again(&mut self) {
        self.tree = self.objects.read();
    }

    fn plan_and_write(
        &mut self,
        slots: &Map,
        cut: Option<prop::sample::Index>,
    ) -> Result<(), TestCaseError> {
        let list: Vec<_> = slots
            .iter()
            .map(|(&i, &vid)| (ObjectIndex(i), vid))
            .collect();
        let writes = self.tree.insert(&list).expect("there is room");
        let made = cut.map_or(writes.len(), |at| at.index(writes.len() + 1));
        for write in &writes[..made] {
            self.objects.write(write);
            let found = owners(&self.objects.read());
            check_between(&self.model, slots, &found)?;
            if self.is_sound {
                for index in self.model.keys() {
                    let found = self.objects.lookup(*index);
                    prop_assert!(found.is_some(), "slot {} is hidden", index);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn tree_plan_interrupted_anywhere_loses_no_slot(
        leaf in 2usize..9,
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let mut model = BtreeModel::new(Capacity { leaf, root: 400 });
        for step in steps {
            model.apply(step)?;
        }
        model.apply(Step::Insert(Map::new()))?;
        prop_assert_eq!(model.objects.read().insert(&[]).unwrap(), []);
    }
}
