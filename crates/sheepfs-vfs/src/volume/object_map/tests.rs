//! Transitions of the object map, against a model of one slot and case by case.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const OLD: u32 = 7;
const HEAD: u32 = 8;
const PARENT: u32 = 3;

fn vid(number: u32) -> Vid {
    Vid::new(number).expect("a small number")
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Commit,
    Unmap,
    Remove,
    MarkInDoubt,
    Resolve(Option<u32>),
    Reclaimed,
    /// The answer to a revalidation that was begun at this step or before.
    Observe {
        owner: Option<u32>,
        begun: usize,
        locked: bool,
    },
    ObserveMissing {
        owner: Option<u32>,
        begun: usize,
    },
}

fn owner() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![Just(None), Just(Some(PARENT)), Just(Some(HEAD))]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(Change::Commit),
        Just(Change::Unmap),
        Just(Change::Remove),
        Just(Change::MarkInDoubt),
        owner().prop_map(Change::Resolve),
        Just(Change::Reclaimed),
        (owner(), any::<prop::sample::Index>(), any::<bool>()).prop_map(
            |(owner, begun, locked)| Change::Observe {
                owner,
                begun: begun.index(64),
                locked,
            }
        ),
        (owner(), any::<prop::sample::Index>()).prop_map(|(owner, begun)| {
            Change::ObserveMissing {
                owner,
                begun: begun.index(64),
            }
        }),
    ]
}

/// What a slot is by the words of the documentation.
#[derive(Clone, Copy, Debug, Default)]
struct Model {
    owner: Option<u32>,
    committed: Option<Option<u32>>,
    in_doubt: bool,
    reclaiming: bool,
    changed_at: usize,
}

impl Model {
    fn apply(&mut self, change: Change, step: usize) {
        let before = *self;
        match change {
            Change::Commit => {
                *self = Self {
                    owner: Some(HEAD),
                    committed: Some(before.owner),
                    ..Self::default()
                };
            }
            Change::Unmap if before.owner.is_none() => return,
            Change::Unmap => {
                *self = Self {
                    reclaiming: before.owner == Some(HEAD),
                    ..Self::default()
                };
            }
            Change::Remove => *self = Self::default(),
            Change::MarkInDoubt => {
                self.committed = None;
                self.in_doubt = true;
                return;
            }
            Change::Resolve(owner) => {
                *self = Self {
                    owner,
                    committed: before.committed.filter(|_| owner == before.owner),
                    in_doubt: false,
                    reclaiming: before.reclaiming && owner.is_none(),
                    changed_at: before.changed_at,
                };
                if owner == before.owner {
                    return;
                }
            }
            Change::Reclaimed => {
                self.reclaiming = false;
                return;
            }
            Change::Observe {
                owner,
                begun,
                locked,
            } => {
                let outdated = before.changed_at > begun;
                if owner == before.owner || outdated || locked || before.committed.is_some() {
                    return;
                }
                self.owner = owner;
                // A slot in doubt stays so until it is asked for under the lock.
                self.reclaiming &= owner.is_none() || before.in_doubt;
            }
            Change::ObserveMissing { owner, begun } => {
                if owner == before.owner || before.changed_at > begun {
                    return;
                }
                self.owner = owner;
                self.committed = None;
            }
        }
        self.changed_at = step;
    }
}

fn apply(map: &mut ObjectMap, revalidations: &[Revalidation], index: ObjectIndex, change: Change) {
    let head = vid(HEAD);
    // The effect of each change on one slot, written without regard to the layout of the
    // map. Changes that return early do not count as a change of the slot.
    match change {
        Change::Commit => map.commit(head, index).expect("it is the head"),
        Change::Unmap => drop(map.unmap(head, &[index]).expect("it is the head")),
        Change::Remove => map.remove(index),
        Change::MarkInDoubt => map.mark_in_doubt(head, index).expect("it is the head"),
        Change::Resolve(owner) => map
            .resolve(head, index, owner.map(vid))
            .expect("it is the head"),
        Change::Reclaimed => map.reclaimed(head, index),
        Change::Observe {
            owner,
            begun,
            locked,
        } => {
            map.observe(&revalidations[begun], [(index, owner.map(vid))], |_| locked)
                .expect("it is the head");
        }
        Change::ObserveMissing { owner, begun } => map
            .observe_missing(&revalidations[begun], index, owner.map(vid))
            .expect("it is the head"),
    }
}

proptest! {
    #[test]
    fn object_map_matches_model(
        changes in prop::collection::vec((0u32..4, change()), 1..120),
    ) {
        let mut map = ObjectMap::new(vid(HEAD), Owners::default());
        let mut models: HashMap<u32, Model> = HashMap::new();
        let mut revalidations = vec![map.revalidate([])];
        for (step, (index, mut change)) in (1usize..).zip(changes) {
            if let Change::Observe { begun, .. } | Change::ObserveMissing { begun, .. } = &mut change {
                *begun %= revalidations.len();
            }
            let model = models.entry(index).or_default();
            apply(&mut map, &revalidations, ObjectIndex(index), change);
            model.apply(change, step);
            // Revalidation N begins after step N.
            revalidations.push(map.revalidate([]));

            let slot = map.slot(ObjectIndex(index));
            let expected = match (model.in_doubt, model.owner.map(vid)) {
                (true, last) => Slot::InDoubt { last },
                (false, Some(owner)) if owner == vid(HEAD) => Slot::Owned,
                (false, Some(owner)) => Slot::Inherited(owner),
                (false, None) if model.reclaiming => Slot::Reclaiming,
                (false, None) => Slot::Hole,
            };
            prop_assert_eq!(slot, expected);
            let owned = models.values().filter(|model| model.owner.is_some()).count();
            prop_assert_eq!(map.allocated(), owned as u64);
            prop_assert_eq!(map.allocated_from(ObjectIndex(0)..).count(), owned);
            let committed: Vec<_> = map.missing_in(&Owners::default());
            let mut missing: Vec<_> = models
                .iter()
                .filter(|(_, model)| model.committed == Some(None))
                .map(|(&index, _)| (ObjectIndex(index), None))
                .collect();
            missing.sort_unstable();
            prop_assert_eq!(committed, missing);
        }
    }

    #[test]
    fn object_map_owners_hold_values(
        changes in prop::collection::vec((0u32..5000, prop::option::of(1u32..9)), 0..200),
        from in 0u32..5000,
    ) {
        let (mut owners, mut model) = (Owners::default(), HashMap::new());
        for (index, raw) in changes {
            let owner = raw.and_then(Vid::new);
            owners.set(ObjectIndex(index), owner);
            model.insert(index, owner);
        }
        let mut expected: Vec<_> = model
            .iter()
            .filter_map(|(&index, &owner)| Some((ObjectIndex(index), owner?)))
            .collect();
        prop_assert_eq!(owners.allocated, expected.len() as u64);
        expected.retain(|&(index, _)| index.0 >= from);
        expected.sort_unstable();
        let found: Vec<_> = owners.allocated_from(ObjectIndex(from)..).collect();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn object_map_refuses_changes_of_former_head() {
    let mut map = ObjectMap::new(vid(OLD), Owners::default());
    let revalidation = map.revalidate([]);
    map.commit(vid(OLD), ObjectIndex(1)).unwrap();
    let mut owners = Owners::default();
    owners.set(ObjectIndex(1), Some(vid(OLD)));
    map.switch_head(vid(HEAD), owners, []);

    let moved = |index| HeadMoved {
        to: vid(HEAD),
        owner: (index == 1).then(|| vid(OLD)),
    };
    let one = ObjectIndex(1);
    assert_eq!(map.commit(vid(OLD), one), Err(moved(1)));
    assert_eq!(map.unmap(vid(OLD), &[one]), Err(moved(1)));
    assert_eq!(map.mark_in_doubt(vid(OLD), one), Err(moved(1)));
    assert_eq!(map.resolve(vid(OLD), one, None), Err(moved(1)));
    assert_eq!(map.observe_missing(&revalidation, one, None), Err(moved(1)));
    let none = [(one, None)];
    assert_eq!(map.observe(&revalidation, none, |_| false), Err(moved(0)));
    let owners = Owners::default();
    assert_eq!(
        map.observe_all(&revalidation, &owners, |_| false),
        Err(moved(0))
    );
    assert_eq!(map.slot(one), Slot::Inherited(vid(OLD)));
}

#[test]
fn object_map_retires_commits_after_race_window() {
    let (mut map, later) = (
        ObjectMap::new(vid(HEAD), Owners::default()),
        Owners::default(),
    );
    map.commit(vid(HEAD), ObjectIndex(1)).unwrap();
    map.commit(vid(HEAD), ObjectIndex(2)).unwrap();
    map.unmap(vid(HEAD), &[ObjectIndex(1)]).unwrap();
    map.commit(vid(HEAD), ObjectIndex(1)).unwrap();
    map.retire_commits(Instant::now());
    assert_eq!(map.missing_in(&later).len(), 2);
    map.retire_commits(Instant::now() + SNAPSHOT_RACE_WINDOW);
    assert_eq!(map.missing_in(&later), []);
    assert!(map.commits.is_empty());
    assert_eq!(map.slot(ObjectIndex(1)), Slot::Owned);
}

#[test]
fn object_map_ignores_response_for_locked_objects() {
    let mut map = ObjectMap::new(vid(HEAD), Owners::default());
    map.commit(vid(HEAD), ObjectIndex(1)).unwrap();
    map.unmap(vid(HEAD), &[ObjectIndex(1)]).unwrap();
    // The slot is being cleared in the cluster, and was not yet when it was read.
    let revalidation = map.revalidate([ObjectIndex(1)]);
    let read = [(ObjectIndex(1), Some(vid(HEAD)))];
    assert_eq!(map.observe(&revalidation, read, |_| false), Ok(false));
    assert_eq!(map.slot(ObjectIndex(1)), Slot::Reclaiming);
    assert!(map.is_changed_since(&revalidation));
}

#[test]
fn object_map_revalidation_skips_local_changes() {
    let mut map = ObjectMap::new(vid(HEAD), Owners::default());
    for index in [1, 2, 3, 2000] {
        map.extend([(ObjectIndex(index), vid(PARENT))]);
    }
    let revalidation = map.revalidate([]);
    map.commit(vid(HEAD), ObjectIndex(2)).unwrap();
    let mut read = Owners::default();
    read.set(ObjectIndex(1), Some(vid(HEAD)));
    read.set(ObjectIndex(5000), Some(vid(HEAD)));
    let locked = |index| index == ObjectIndex(3);
    assert_eq!(map.observe_all(&revalidation, &read, locked), Ok(true));
    let all: Vec<_> = map.allocated_from(ObjectIndex(0)..).collect();
    let expected = [(1, HEAD), (2, HEAD), (3, PARENT), (5000, HEAD)]
        .map(|(index, owner)| (ObjectIndex(index), vid(owner)));
    assert_eq!(all, expected);
    assert_eq!(map.observe_all(&revalidation, &read, locked), Ok(false));
}
