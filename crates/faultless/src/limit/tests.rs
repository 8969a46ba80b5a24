//! The tree of groups and stocks, without an engine.

use super::groups::{Groups, MOST_GROUPS};
use super::stock::Stock;
use super::{LimitConfig, MemoryLimitError};
use crate::host::GroupId;
use crate::sync::FenceBarrier;

fn make(groups: &Groups, above: GroupId, max: u64) -> GroupId {
    let group = groups.take().unwrap().unwrap();
    groups.begin(group, above, LimitConfig::max(max)).unwrap();
    group
}

fn usage(groups: &Groups, group: GroupId) -> u64 {
    groups.get(group).unwrap().usage()
}

/// ```text
/// root ── a (100) ─┬─ b (60)
///                  └─ c (60)
/// ```
fn family() -> (Groups, [GroupId; 3]) {
    let groups = Groups::default();
    let a = make(&groups, GroupId::ROOT, 100);
    let (b, c) = (make(&groups, a, 60), make(&groups, a, 60));
    (groups, [a, b, c])
}

#[test]
fn a_charge_counts_in_all_groups_above_or_in_none() {
    let (groups, [a, b, c]) = family();
    groups.charge(b, 60).unwrap();
    assert_eq!(groups.charge(b, 1), Err(b));
    assert_eq!([a, b, c].map(|group| usage(&groups, group)), [60, 60, 0]);
    groups.charge(c, 40).unwrap();
    assert_eq!(groups.charge(c, 1), Err(a), "the group above is full");
    assert_eq!([a, b, c].map(|group| usage(&groups, group)), [100, 60, 40]);
    assert_eq!((groups.full(b, 1), groups.full(c, 1)), (Some(b), Some(a)));
    groups.uncharge(b, 60);
    groups.uncharge(c, 40);
    assert_eq!([a, b, c].map(|group| usage(&groups, group)), [0; 3]);
}

#[test]
fn a_group_is_within_itself_those_above_and_the_root() {
    let (groups, [a, b, c]) = family();
    for (group, of, is_within) in
        [(b, b, true), (b, a, true), (b, c, false), (a, b, false), (a, GroupId::ROOT, true)]
    {
        assert_eq!(groups.is_within(group, of), is_within, "{group:?} {of:?}");
    }
    assert_eq!((groups.depth(GroupId::ROOT), groups.depth(a), groups.depth(b)), (0, 1, 2));
}

/// The number of a group serves another one only when nothing is charged to it, neither pages nor a stock nor swap.
#[test]
fn a_number_is_used_again_when_nothing_is_charged() {
    let (groups, [_, b, _]) = family();
    let stock = Stock::new();
    stock.charge(&groups, b).unwrap();
    groups.add_swap(b);
    groups.end(b);
    let other = make(&groups, GroupId::ROOT, 10);
    assert_ne!(other, b, "its pages are charged");
    groups.uncharge(b, 1);
    stock.give_back(&FenceBarrier, &groups);
    assert_eq!(usage(&groups, b), 0);
    assert_ne!(make(&groups, GroupId::ROOT, 10), b, "it has a slot of swap space");
    groups.subtract_swap(b);
    assert_eq!(make(&groups, GroupId::ROOT, 10), b);
}

#[test]
fn there_are_as_many_groups_as_stated() {
    let groups = Groups::default();
    for number in 1..=MOST_GROUPS {
        let group = make(&groups, GroupId::ROOT, 10);
        assert_eq!(group.get() as usize, number);
        assert_eq!(usage(&groups, group), 0);
    }
    assert_eq!(groups.take(), Ok(None));
}

#[test]
fn a_stock_is_of_one_group_and_small_where_room_is_small() {
    let (groups, [a, b, c]) = family();
    let stock = Stock::new();
    // b has 60, a has 100: half of 60 for the only stock.
    assert_eq!(stock.charge(&groups, b).unwrap().pages, 30);
    assert_eq!(stock.seen(), (b, 29));
    assert!(stock.take(b) && !stock.take(c) && !stock.take(a));
    // The stock goes back, and c's comes.
    assert_eq!(stock.charge(&groups, c).unwrap().pages, 30);
    assert_eq!([a, b, c].map(|group| usage(&groups, group)), [32, 2, 30]);
    // Of frames that are freed, twice the share stays: here 2 times 14.
    assert_eq!((0..30).filter(|_| stock.take(c)).count(), 29);
    assert_eq!(stock.charge(&groups, c).unwrap().pages, 15);
    for _ in 0..31 {
        groups.uncharge(c, stock.put(&FenceBarrier, c, false).pages);
        assert!(stock.seen().1 <= 28, "{:?}", stock.seen());
    }
    assert_eq!(stock.seen(), (c, usage(&groups, c)), "all that is charged is in the stock");
    assert_eq!(stock.put(&FenceBarrier, b, false).pages, 1, "a page of another group does not stay");
    groups.uncharge(b, 1);
    stock.give_back(&FenceBarrier, &groups);
    assert_eq!([a, b, c].map(|group| usage(&groups, group)), [1, 1, 0]);
}

#[test]
fn a_stock_that_is_being_taken_is_left_alone() {
    let (groups, [a, b, c]) = family();
    let stock = Stock::new();
    stock.charge(&groups, b).unwrap();
    assert!(!stock.begin_taking(|group| group == c));
    assert!(stock.begin_taking(|group| group == b));
    assert!(!stock.begin_taking(|_| true), "one thread takes it");
    assert!(!stock.take(b), "the owner takes nothing");
    assert_eq!(stock.charge(&groups, b).unwrap().pages, 1, "it charges what it needs");
    assert_eq!(stock.charge(&groups, c).unwrap().pages, 1);
    assert_eq!(stock.put(&FenceBarrier, b, false).pages, 1);
    groups.uncharge(b, 1);
    stock.give_back(&FenceBarrier, &groups);
    assert_eq!(stock.take_back(&groups), 29);
    assert_eq!([a, b, c].map(|group| usage(&groups, group)), [2, 1, 1]);
    assert_eq!(stock.charge(&groups, b).unwrap().pages, 29, "half of what is left");
}

/// A refusal leaves the limits as they were, and no group.
#[test]
fn limits_are_compared_with_those_above_and_below() {
    let (groups, [a, b, _]) = family();
    let refused = groups.take().unwrap().unwrap();
    let above = |max, parent| Err(MemoryLimitError::AboveParent { max, parent });
    assert_eq!(groups.begin(refused, a, LimitConfig::max(101)), above(101, 100));
    assert_eq!(groups.set(b, LimitConfig::max(101)), above(101, 100));
    assert_eq!(groups.set(a, LimitConfig::max(59)), above(60, 59));
    assert_eq!([a, b].map(|group| groups.get(group).unwrap().max()), [100, 60]);
    assert_eq!(groups.take(), Ok(Some(refused)), "its record is free");
    groups.set(a, LimitConfig::max(60)).unwrap();
    groups.set(b, LimitConfig::max(LimitConfig::NONE)).unwrap();
    groups.set(a, LimitConfig::max(LimitConfig::NONE)).unwrap();
}

#[test]
fn limits_are_checked() {
    let check = |high, max, parent| LimitConfig { high, max }.check(parent).err();
    let none = LimitConfig::NONE;
    assert_eq!(check(none, 0, None), Some(MemoryLimitError::Zero));
    assert_eq!(check(0, 9, None), Some(MemoryLimitError::Zero));
    assert_eq!(check(none, 3, None), Some(MemoryLimitError::BelowMinimum { pages: 3 }));
    assert_eq!(check(2, 9, None), Some(MemoryLimitError::BelowMinimum { pages: 2 }));
    assert_eq!(check(10, 9, None), Some(MemoryLimitError::HighAboveMax { high: 10, max: 9 }));
    assert_eq!(check(none, 9, Some(8)), Some(MemoryLimitError::AboveParent { max: 9, parent: 8 }));
    assert_eq!(check(9, 9, Some(9)), None);
    assert_eq!(check(none, none, Some(9)), None);
}

/// A thread sleeps longer the more its group is over high, whatever the size of the group.
#[test]
fn a_thread_over_high_sleeps_by_the_part_that_is_over() {
    use super::room::sleep_over;
    for high in [8, 1 << 10, 10_000_000, 20_000_000, 1 << 40] {
        assert_eq!(sleep_over(high, 0), 0);
        assert_eq!(sleep_over(high, high / 8), 10_000_000, "{high}");
        assert_eq!(sleep_over(high, high / 8 * 4), 10_000_000, "{high}");
        assert!(
            (4_900_000..=5_100_000).contains(&sleep_over(high.max(1 << 10), high.max(1 << 10) / 16)),
            "{high}"
        );
    }
    assert_eq!(sleep_over(u64::MAX, u64::MAX), 10_000_000);
    assert_eq!(sleep_over(0, 1), 10_000_000);
}
