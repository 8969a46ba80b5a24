use super::*;
use std::sync::Mutex as StdMutex;

/// Remembers whom it was told to wake.
#[derive(Default)]
struct Notes(StdMutex<Vec<u64>>);

impl Park for Notes {
    fn current(&self) -> Sleeper {
        Sleeper(0)
    }
    fn park(&self, _: Sleeper) {}
    fn unpark(&self, sleeper: Sleeper) {
        self.0.lock().unwrap().push(sleeper.0);
    }
    fn spin(&self, _: u32) {}
}

fn waiters(tickets: impl IntoIterator<Item = u64>) -> Vec<Waiter> {
    tickets.into_iter().map(|ticket| Waiter::new(Sleeper(ticket), ticket as usize % 2, ticket)).collect()
}

fn taken(queue: &mut WaitQueue, key: usize, most: usize) -> Vec<u64> {
    let mut woken = Woken::new();
    let count = queue.take(key, most, &mut woken);
    let notes = Notes::default();
    woken.wake(&notes);
    let sleepers = notes.0.into_inner().unwrap();
    assert_eq!(sleepers.len(), count);
    sleepers
}

#[test]
fn a_queue_is_in_the_order_of_tickets_and_of_coming() {
    let (waiters, mut queue) = (waiters([4, 2, 8, 2, 6]), WaitQueue::default());
    // SAFETY: each once, and the vector stays.
    waiters.iter().for_each(|waiter| unsafe { queue.push(waiter) });
    assert_eq!(queue.first_ticket(), Some(2));
    // SAFETY: it is in the queue.
    unsafe { queue.remove(&waiters[4]) };
    assert!(!queue.has(&waiters[4]) && queue.has(&waiters[0]));
    assert_eq!(taken(&mut queue, 0, 2), [2, 2]);
    assert!(waiters[1].is_woken() && waiters[3].is_woken() && !waiters[0].is_woken());
    assert_eq!(taken(&mut queue, 1, 9), [], "no waiter has this key");
    assert_eq!(taken(&mut queue, 0, 9), [4, 8]);
    assert!(queue.is_empty() && queue.first_ticket().is_none());
}

#[test]
fn one_queue_goes_behind_another() {
    let (waiters, mut first, mut second) = (waiters([2, 4, 0]), WaitQueue::default(), WaitQueue::default());
    // SAFETY: each once, and the vector stays.
    unsafe {
        first.push(&waiters[0]);
        second.push(&waiters[1]);
        second.push(&waiters[2]);
    }
    first.append(&mut second);
    assert!(second.is_empty());
    second.append(&mut first);
    first.append(&mut second);
    assert_eq!(taken(&mut first, 0, 9), [2, 0, 4]);
}

#[test]
fn a_wake_up_is_for_those_of_its_key_however_many() {
    let (list, notes) = (WaitList::default(), Notes::default());
    let waiters = waiters(0..100);
    waiters.iter().for_each(|waiter| list.add(waiter));
    list.wake(&notes, 1);
    assert_eq!(*notes.0.lock().unwrap(), (0..50).map(|n| 2 * n + 1).collect::<Vec<_>>());
    assert_eq!(list.waiting.load(Ordering::Relaxed), 50);
    waiters.iter().for_each(|waiter| list.remove(waiter));
    assert_eq!(list.waiting.load(Ordering::Relaxed), 0);
    assert!(list.queue.lock().is_empty());
}

#[test]
fn a_boxed_waiter_leaves_when_it_is_dropped() {
    let (list, notes) = (WaitList::default(), Notes::default());
    // SAFETY: the list is dropped last.
    let [woken, left] = [1, 2].map(|n| unsafe { BoxedWaiter::new(&list, Sleeper(n), n as usize) }.unwrap());
    list.wake(&notes, 1);
    assert_eq!(*notes.0.lock().unwrap(), [1]);
    drop(left);
    list.wake(&notes, 2);
    assert_eq!(*notes.0.lock().unwrap(), [1], "a waiter that has left is not woken");
    drop(woken);
    assert!(list.queue.lock().is_empty());
}
