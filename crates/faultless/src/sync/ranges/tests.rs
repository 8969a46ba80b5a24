use super::*;
use crate::host::StdPark;

impl<T> Edited for Vec<T> {}

fn range(start: u64, end: u64) -> PageRange {
    PageRange::new(PageNumber::new(start), PageNumber::new(end)).unwrap()
}

#[test]
fn overlapping_claims_are_served_in_order() {
    let (ranges, park) = (Ranges::try_new(Vec::new()).unwrap(), StdPark::default());
    let (first, guard) = ranges.take(range(0, 10), &park);
    drop(guard);
    std::thread::scope(|scope| {
        for (n, claim) in [range(5, 15), range(8, 9), range(12, 14)].into_iter().enumerate() {
            let (ranges, park) = (&ranges, &park);
            scope.spawn(move || {
                let (_taken, mut log) = ranges.take(claim, park);
                log.push(n);
            });
            while ranges.claimed() < n + 2 {
                std::thread::yield_now();
            }
        }
        drop(first);
    });
    // 8..9 and 12..14 each wait for 5..15, which came before them.
    assert_eq!(ranges.lock_by(&park)[0], 0);
    assert_eq!(ranges.lock_by(&park).len(), 3);
    assert_eq!(ranges.claimed(), 0);
}

#[test]
fn disjoint_claims_go_on_side_by_side() {
    let (ranges, park) = (Ranges::try_new(()).unwrap(), StdPark::default());
    let (a, guard) = ranges.take(range(0, 4), &park);
    drop(guard);
    let (b, guard) = ranges.take(range(4, 8), &park);
    drop(guard);
    assert_eq!((a.range(), b.range(), ranges.claimed()), (range(0, 4), range(4, 8), 2));
}

#[test]
fn waiting_for_earlier_claims_keeps_no_later_claim_waiting() {
    let (ranges, park) = (Ranges::try_new(()).unwrap(), StdPark::default());
    let (earlier, guard) = ranges.take(range(0, 4), &park);
    drop(guard);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| drop(ranges.wait_for_earlier(&park)));
        while ranges.waiting.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        let (later, guard) = ranges.take(range(4, 8), &park);
        drop(guard);
        assert!(!waiter.is_finished());
        drop(earlier);
        // The later claim is there still.
        waiter.join().unwrap();
        assert_eq!(ranges.claimed(), 1);
        drop(later);
    });
}

#[test]
fn claims_are_listed_some_at_a_time() {
    let (ranges, park) = (Ranges::try_new(()).unwrap(), StdPark::default());
    let taken: Vec<_> = (0..5).map(|n| ranges.take(range(n, n + 1), &park).0).collect();
    let lock = ranges.lock_by(&park);
    let (mut seen, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        let mut few = [Some(range(9, 10)); 2];
        next = lock.claims().with_tickets(from..4, &mut few);
        seen.extend(few.into_iter().flatten());
    }
    assert_eq!(seen, [range(0, 1), range(1, 2), range(2, 3), range(3, 4)]);
    drop(lock);
    drop(taken);
}

#[test]
fn two_ranges_are_waited_for_together() {
    let (ranges, park) = (Ranges::try_new(Vec::new()).unwrap(), StdPark::default());
    let (held, guard) = ranges.take(range(8, 9), &park);
    drop(guard);
    std::thread::scope(|scope| {
        // Each has something that the other wants, and the first waits for one of its own.
        let pairs = [(range(0, 4), range(8, 12)), (range(10, 12), range(2, 3))];
        for (n, (first, second)) in pairs.into_iter().enumerate() {
            let (ranges, park) = (&ranges, &park);
            scope.spawn(move || {
                let ((_first, _second), mut log) = ranges.take_both(first, second, park);
                log.push(n);
            });
            while ranges.claimed() < 2 * n + 3 {
                std::thread::yield_now();
            }
        }
        drop(held);
    });
    assert_eq!(*ranges.lock_by(&park), [0, 1]);
    assert_eq!(ranges.claimed(), 0);
}

#[test]
fn a_claim_widens_only_over_free_pages() {
    let (ranges, park) = (Ranges::try_new(()).unwrap(), StdPark::default());
    let (mut a, guard) = ranges.take(range(0, 4), &park);
    drop(guard);
    let (b, mut guard) = ranges.take(range(6, 8), &park);
    assert!(!a.widen(range(0, 7), guard.parts().1));
    assert!(a.widen(range(0, 6), guard.parts().1));
    assert_eq!((a.range(), b.range()), (range(0, 6), range(6, 8)));
    drop(guard);
}
