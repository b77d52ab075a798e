//! Who gets one of the places. Some are the daemon's own user's and root's alone, nobody has more than half of what may be
//! his, and each user of the list finds one whatever the others do.

use std::collections::{BTreeMap, BTreeSet};

/// How many connections there may be, and whose.
#[derive(Debug, Clone)]
pub(super) struct Room {
    most: usize,
    /// The daemon's own user, and root.
    masters: BTreeSet<u32>,
    /// All who may connect, those included.
    users: BTreeSet<u32>,
}

/// Who else has to go, if anybody: the oldest of these that holds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Free,
    /// The same user has all that he may have.
    Own(usize),
    /// There is no place that this user may have.
    Full(usize),
}

impl Room {
    /// Less than this is refused: two places for the masters, and two for others, of which one has half.
    pub(super) const LEAST: u16 = 4;

    /// For so many connections of these users, who include the masters.
    pub(super) fn new(most: u16, own: u32, users: BTreeSet<u32>) -> Self {
        Self { most: most.into(), masters: BTreeSet::from([own, 0]), users }
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Places that only the masters get.
    fn reserved(&self) -> usize {
        self.most.checked_div(8).unwrap_or(0).max(2)
    }

    /// The most that one user gets.
    fn share(&self, uid: u32) -> usize {
        let his = if self.masters.contains(&uid) { self.most } else { self.most.saturating_sub(self.reserved()) };
        his.checked_div(2).unwrap_or(0)
    }

    /// Whether a user gets another place, where each has so many.
    pub(super) fn check(&self, uid: u32, taken: &BTreeMap<u32, usize>) -> Verdict {
        let of = |uid: &u32| taken.get(uid).copied().unwrap_or(0);
        let (own, share) = (of(&uid), self.share(uid));
        if own >= share {
            return Verdict::Own(share);
        }
        let is_master = self.masters.contains(&uid);
        let masters: usize = self.masters.iter().map(of).sum();
        // Kept for the masters, each of whom finds one; and for those of the list who have none, from those who have.
        let without = |uid: &&u32| of(uid) == 0;
        let missing = self.masters.iter().filter(without).filter(|other| **other != uid).count();
        let for_masters = if is_master { missing } else { missing.max(self.reserved().saturating_sub(masters)) };
        let others = self.users.difference(&self.masters).filter(without).filter(|other| **other != uid).count();
        let kept = match (own, is_master) {
            (0, true) => 0,
            (0, false) => for_masters,
            _ => for_masters.saturating_add(others),
        };
        let all: usize = taken.values().sum();
        if all.saturating_add(kept) < self.most { Verdict::Free } else { Verdict::Full(self.most) }
    }

    /// Whose connection may go for one of this user, where there is no place for it: none of a master's for others, and none
    /// of somebody who has no more than he.
    pub(super) fn may_displace(&self, uid: u32, other: u32, taken: &BTreeMap<u32, usize>) -> bool {
        let of = |uid: u32| taken.get(&uid).copied().unwrap_or(0);
        match (self.masters.contains(&uid), self.masters.contains(&other)) {
            _ if uid == other => true,
            (true, false) => true,
            (false, true) => false,
            _ => of(other) > of(uid),
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    const OWN: u32 = 900;

    fn room(most: u16, others: impl IntoIterator<Item = u32>) -> Room {
        Room::new(most, OWN, others.into_iter().chain([OWN, 0]).collect())
    }

    /// Fills the room in turns, as far as each gets, all of them holding what they have.
    fn crowd(room: &Room, users: &[u32]) -> BTreeMap<u32, usize> {
        let mut taken = BTreeMap::new();
        loop {
            let before: usize = taken.values().sum();
            for user in users {
                if room.check(*user, &taken) == Verdict::Free {
                    *taken.entry(*user).or_insert(0) += 1;
                }
            }
            if taken.values().sum::<usize>() == before {
                return taken;
            }
        }
    }

    #[test]
    fn whoever_crowds_the_daemons_user_and_root_and_each_of_the_list_find_a_place() {
        for most in [4, 5, 16, 512, u16::MAX] {
            let room = room(most, [1, 2, 3]);
            for crowders in [&[1][..], &[1, 2], &[1, 2, 3], &[1, 2, OWN], &[OWN, 1], &[OWN], &[0], &[2, 0]] {
                let taken = crowd(&room, crowders);
                assert!(taken.values().sum::<usize>() <= usize::from(most));
                for user in [OWN, 0] {
                    let is_in = taken.contains_key(&user) || room.check(user, &taken) == Verdict::Free;
                    assert!(is_in, "{user} beside {crowders:?} of {most}: {taken:?}");
                }
                // Where there are places for each of them at all.
                for user in [1, 2, 3].into_iter().filter(|_| most >= 16) {
                    let is_in = taken.contains_key(&user) || room.check(user, &taken) == Verdict::Free;
                    assert!(is_in, "{user} beside {crowders:?} of {most}: {taken:?}");
                }
            }
        }
        let two = crowd(&room(512, [1, 2]), &[1, 2]);
        assert_eq!((two[&1], two[&2]), (224, 224), "half of what is not reserved, each");
        let masters = |taken: &BTreeMap<u32, usize>| crowd_on(&room(512, [1, 2]), taken, OWN);
        assert_eq!(masters(&two), 63, "the reserved ones, and one of them is root's");
    }

    /// How many more one user gets.
    fn crowd_on(room: &Room, taken: &BTreeMap<u32, usize>, user: u32) -> usize {
        let mut taken = taken.clone();
        let mut count = 0;
        while room.check(user, &taken) == Verdict::Free {
            *taken.entry(user).or_insert(0) += 1;
            count += 1;
        }
        count
    }

    #[test]
    fn with_more_users_than_places_the_first_ones_get_one_each() {
        let users: Vec<u32> = (1..=600).collect();
        let taken = crowd(&room(512, users.iter().copied()), &users);
        assert_eq!((taken.len(), taken.values().max()), (448, Some(&1)));
    }

    #[test]
    fn nobody_has_to_go_for_one_who_has_as_many() {
        let room = room(16, [1, 2]);
        let taken = BTreeMap::from([(1, 4), (2, 1), (OWN, 5), (0, 1)]);
        assert!(room.may_displace(2, 1, &taken) && !room.may_displace(1, 2, &taken));
        assert!(room.may_displace(0, 1, &taken) && !room.may_displace(2, OWN, &taken));
        assert!(room.may_displace(0, OWN, &taken) && !room.may_displace(OWN, 0, &taken));
    }
}
