//! Models of a stock that its thread uses while another thread takes it back, with pages of one group and of two, and of limits that two
//! threads change.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless --lib --profile checked limit`

use super::LimitConfig;
use super::groups::Groups;
use crate::host::GroupId;
use crate::sync::{FenceBarrier, Sections, SlotIndex, spin_loop};
use loom::thread;
use std::sync::Arc;

fn slot() -> SlotIndex {
    SlotIndex::new(0).unwrap()
}

/// Takes a page of `group`, as a fault does.
fn take(sections: &Sections, group: GroupId) {
    // SAFETY: the slot is this thread's, and all sections are entered with this barrier.
    let section = unsafe { sections.enter(slot(), &FenceBarrier) };
    if !section.stock().take(group) {
        section.stock().charge(sections.groups(), group).unwrap();
    }
}

/// Gives a page of `group` back, as a thread that frees a frame does.
fn put(sections: &Sections, group: GroupId) {
    let back = sections.stock(slot()).put(&FenceBarrier, group, false);
    sections.groups().uncharge(group, back.pages);
}

/// Takes a page of a file of `group`, as a fault does.
fn take_file(sections: &Sections, group: GroupId) {
    // SAFETY: as in `take`.
    let section = unsafe { sections.enter(slot(), &FenceBarrier) };
    if !section.stock().take(group) {
        section.stock().charge(sections.groups(), group).unwrap();
    }
    section.stock().count_file(sections.groups(), group);
}

/// Gives a page of a file back.
fn put_file(sections: &Sections, group: GroupId) {
    let back = sections.stock(slot()).put(&FenceBarrier, group, true);
    sections.groups().count_files(group, back.files);
    sections.groups().uncharge(group, back.pages);
}

/// Runs `owner` while another thread takes the stock back. The owner has `before` pages at first and `after` at the end.
fn beside_a_taker(
    before: u64,
    after: u64,
    owner: impl Fn(&Sections, GroupId) + Copy + Send + Sync + 'static,
) {
    loom::model(move || {
        let sections = Arc::new(Sections::new());
        let groups = sections.groups();
        let group = groups.take().unwrap().unwrap();
        groups.begin(group, GroupId::ROOT, LimitConfig::max(16)).unwrap();
        (0..before).for_each(|_| take(&sections, group));
        let taker = thread::spawn({
            let sections = sections.clone();
            move || sections.take_stocks(&FenceBarrier, |_| true, |_| spin_loop())
        });
        owner(&sections, group);
        taker.join().unwrap();
        let (of, stock) = sections.stock(slot()).seen();
        assert!(of == group || stock == 0, "pages were lost: they are in a stock of no group");
        let usage = groups.get(group).unwrap().usage();
        assert_eq!(usage, after + stock, "pages were lost, or are in two places");
        // The stock is of use again.
        take(&sections, group);
        put(&sections, group);
        assert_eq!(groups.get(group).unwrap().usage(), after + sections.stock(slot()).seen().1);
    });
}

#[test]
fn a_fault_takes_from_its_stock_while_that_is_taken_back() {
    beside_a_taker(1, 2, take);
}

#[test]
fn a_freed_page_goes_to_a_stock_that_is_taken_back() {
    beside_a_taker(2, 1, put);
}

#[test]
fn a_thread_ends_while_its_stock_is_taken_back() {
    // SAFETY: the thread is in no section, and no other thread uses the slot.
    beside_a_taker(1, 1, |sections, _| unsafe { sections.unlist(slot()) });
}

/// The stock's count of pages of files goes to the group once, whether the owner or the taker brings it there.
#[test]
fn pages_of_files_are_counted_while_their_stock_is_taken_back() {
    let owners: [(fn(&Sections, GroupId), i64); 2] = [(take_file, 2), (put_file, 0)];
    for (owner, expected) in owners {
        loom::model(move || {
            let sections = Arc::new(Sections::new());
            let groups = sections.groups();
            let group = groups.take().unwrap().unwrap();
            groups.begin(group, GroupId::ROOT, LimitConfig::max(16)).unwrap();
            take_file(&sections, group);
            let taker = thread::spawn({
                let sections = sections.clone();
                move || sections.take_stocks(&FenceBarrier, |_| true, |_| spin_loop())
            });
            owner(&sections, group);
            taker.join().unwrap();
            let files = groups.get(group).unwrap().files() + sections.stock(slot()).seen_files();
            assert_eq!(files, expected, "pages of files were counted twice, or not");
        });
    }
}

/// A group's max is lowered while a group below it begins, or gets a larger max. One of the two is refused.
#[test]
fn limits_change_above_and_below() {
    for begins in [true, false] {
        loom::model(move || {
            let groups = Arc::new(Groups::default());
            let [above, below] = [(); 2].map(|()| groups.take().unwrap().unwrap());
            groups.begin(above, GroupId::ROOT, LimitConfig::max(100)).unwrap();
            if !begins {
                groups.begin(below, above, LimitConfig::max(8)).unwrap();
            }
            let lowering = thread::spawn({
                let groups = groups.clone();
                move || groups.set(above, LimitConfig::max(10)).is_ok()
            });
            let large = LimitConfig::max(60);
            let is_large =
                if begins { groups.begin(below, above, large) } else { groups.set(below, large) }.is_ok();
            let is_lowered = lowering.join().unwrap();
            assert!(!(is_large && is_lowered), "max is above that of the group above");
            assert!(is_large || is_lowered, "both were refused");
        });
    }
}

/// Makes two groups below one that all pages are charged to.
fn two_groups(sections: &Sections) -> [GroupId; 3] {
    let groups = sections.groups();
    let [above, one, other] = [(); 3].map(|()| groups.take().unwrap().unwrap());
    groups.begin(above, GroupId::ROOT, LimitConfig::max(32)).unwrap();
    [one, other].iter().for_each(|group| groups.begin(*group, above, LimitConfig::max(16)).unwrap());
    [above, one, other]
}

/// Checks that each group pays for `pages` and what is in the stock, and the group above both for all.
fn check_two(sections: &Sections, [above, one, other]: [GroupId; 3], pages: [u64; 2]) {
    let (of, stock) = sections.stock(slot()).seen();
    let usage = |group| sections.groups().get(group).unwrap().usage();
    for (group, pages) in [one, other].into_iter().zip(pages) {
        let in_stock = if of == group { stock } else { 0 };
        assert_eq!(
            usage(group),
            pages + in_stock,
            "a group pays for pages of another, or for pages that are lost"
        );
    }
    assert_eq!(usage(above), usage(one) + usage(other), "the group above pays for other pages");
}

/// Runs `owner` in a slot whose stock is the first group's, while another thread takes that back. The first group has two pages before, the
/// other one has one. They have `after` at the end.
fn between_two_groups(
    after: [u64; 2],
    owner: impl Fn(&Sections, [GroupId; 2]) + Copy + Send + Sync + 'static,
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(4));
    builder.check(move || {
        let sections = Arc::new(Sections::new());
        let of_both @ [_, one, other] = two_groups(&sections);
        take(&sections, other);
        (0..2).for_each(|_| take(&sections, one));
        assert_eq!(sections.stock(slot()).seen().0, one);
        let taker = thread::spawn({
            let sections = sections.clone();
            move || sections.take_stocks(&FenceBarrier, |_| true, |_| spin_loop())
        });
        owner(&sections, [one, other]);
        taker.join().unwrap();
        check_two(&sections, of_both, after);
        // The stock is of use again, for both.
        for group in [one, other] {
            take(&sections, group);
            put(&sections, group);
        }
        check_two(&sections, of_both, after);
    });
}

/// A thread with a stock of one group serves a fault in a space of another group.
#[test]
fn a_stock_changes_its_group_while_it_is_taken_back() {
    between_two_groups([2, 2], |sections, [_, other]| take(sections, other));
}

/// A thread with a stock of one group frees a page of another group.
#[test]
fn a_page_of_another_group_is_freed_beside_a_stock_that_is_taken_back() {
    between_two_groups([2, 0], |sections, [_, other]| put(sections, other));
}

/// A thread copies a page of its group and frees one of another, as at the end of a fork and of a copy on write.
#[test]
fn a_page_comes_and_one_of_another_group_goes() {
    between_two_groups([1, 2], |sections, [one, other]| {
        take(sections, other);
        put(sections, one);
    });
}
