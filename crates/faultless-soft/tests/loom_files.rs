//! Models of a file that is read, written, cut off and punched by several threads. As `loom.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_files`
#![cfg(loom)]

mod models;

use faultless::address::PAGE_SIZE;
use faultless::protection::{Access, Protection};
use faultless::store::{Direction, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{Engine, Fault, File, Limits, MapRequest, Placement};
use faultless_soft::Soft;
use models::{Space, at, close, end, model, spawn};
use std::sync::{Arc, Mutex};

const WORD: usize = 8;

struct State {
    length: u64,
    /// The first word of its page.
    word: [u8; WORD],
    /// Writes that have been submitted and have not ended, if they do not end at once.
    held: Vec<Transfer>,
}

/// A store of one page, whose writes end at once or when the test says so.
struct Page {
    state: Mutex<State>,
    holds: bool,
}

impl Page {
    fn new(length: u64, holds: bool) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { length, word: [0; WORD], held: Vec::new() }), holds })
    }

    fn word(&self) -> u64 {
        u64::from_ne_bytes(self.state.lock().unwrap().word)
    }

    fn carry_out(&self, mut transfer: Transfer) {
        let direction = transfer.direction();
        let bytes = &mut transfer.bytes()[..WORD];
        let mut state = self.state.lock().unwrap();
        match direction {
            Direction::Read => bytes.copy_from_slice(&state.word),
            Direction::Write => state.word.copy_from_slice(bytes),
        }
        let length = state.length;
        drop(state);
        transfer.complete(Ok(length.min(PAGE_SIZE) as usize));
    }

    /// Ends the writes that are held.
    fn end(&self) {
        let held = std::mem::take(&mut self.state.lock().unwrap().held);
        held.into_iter().for_each(|transfer| self.carry_out(transfer));
    }
}

impl Store for Page {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.state.lock().unwrap().length)
    }

    fn submit(&self, transfer: Transfer) {
        match self.holds && transfer.direction() == Direction::Write {
            true => self.state.lock().unwrap().held.push(transfer),
            false => self.carry_out(transfer),
        }
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap();
        assert!(
            state.held.is_empty(),
            "invariant 14: the length changes while a write sized by it is under way"
        );
        state.length = length;
        Ok(())
    }

    fn punch(&self, _: u64, _: u64) -> Result<(), StoreError> {
        self.state.lock().unwrap().word = [0; WORD];
        Ok(())
    }
}

fn open(store: &Arc<Page>) -> (Arc<Engine<Soft>>, Shared<File<Soft>>) {
    let engine = Engine::new(Soft::new(6).expect("frames"), Limits::default()).expect("memory for an engine");
    let file = File::open_rw(&engine, store.clone()).expect("a store with a length");
    (engine, file)
}

/// A sync returns when the page has been written, also if somebody else has begun its writeback.
#[test]
fn sync_against_a_writeback_that_begins() {
    model(2, || {
        let store = Page::new(PAGE_SIZE, false);
        let (engine, file) = open(&store);
        file.handle().write_at(0, &1_u64.to_ne_bytes()).unwrap();
        let other = file.clone();
        let start = spawn(1, move || other.handle().start_sync());
        file.handle().sync().unwrap();
        assert_eq!(store.word(), 1, "sync returned before the page was written");
        start.join().unwrap();
        close(file);
        end(&engine, Space::new(&engine).unwrap());
    });
}

/// A file that is cut off inside a page waits for a write of that page, and a write of it begins before or after.
#[test]
fn a_cut_against_a_write_of_its_last_page() {
    model(2, || {
        let store = Page::new(PAGE_SIZE, true);
        let (engine, file) = open(&store);
        file.handle().write_at(0, &1_u64.to_ne_bytes()).unwrap();
        let (other, ends) = (file.clone(), store.clone());
        let write = spawn(1, move || {
            other.handle().start_sync();
            ends.end();
        });
        file.handle().set_length(WORD as u64).unwrap();
        write.join().unwrap();
        file.handle().start_sync();
        store.end();
        assert_eq!((store.word(), store.length()), (1, Ok(WORD as u64)));
        close(file);
        end(&engine, Space::new(&engine).unwrap());
    });
}

/// The same where the file grows: the write that is under way is sized by the shorter length.
#[test]
fn growth_against_a_write_of_the_last_page() {
    model(2, || {
        let store = Page::new(WORD as u64, true);
        let (engine, file) = open(&store);
        file.handle().write_at(0, &1_u64.to_ne_bytes()).unwrap();
        let (other, ends) = (file.clone(), store.clone());
        let write = spawn(1, move || {
            other.handle().start_sync();
            ends.end();
        });
        file.handle().set_length(2 * WORD as u64).unwrap();
        write.join().unwrap();
        file.handle().start_sync();
        store.end();
        assert_eq!((store.word(), store.length()), (1, Ok(2 * WORD as u64)));
        close(file);
        end(&engine, Space::new(&engine).unwrap());
    });
}

/// Whoever reads beside an append sees the bytes, or that they are not there yet.
#[test]
fn a_read_against_an_append() {
    model(2, || {
        let store = Page::new(1, false);
        let (engine, file) = open(&store);
        let other = file.clone();
        let append = spawn(1, move || other.handle().write_at(1, &[7]).unwrap());
        let mut byte = [0];
        if file.handle().read_at(1, &mut byte).unwrap() == 1 {
            assert_eq!(byte, [7], "invariant 14: a byte that nobody wrote");
        }
        append.join().unwrap();
        assert_eq!(file.length(), 2);
        close(file);
        end(&engine, Space::new(&engine).unwrap());
    });
}

/// A read that meets a hole being punched goes on when that has ended, whatever else is pinned.
#[test]
fn a_read_against_a_punch() {
    model(2, || {
        let store = Page::new(PAGE_SIZE, false);
        let (engine, file) = open(&store);
        // A read of another file that does not end: a pin that stays.
        let slow = Arc::new(Slow(Mutex::new(None)));
        let other = File::open(&engine, slow.clone()).expect("a store with a length");
        let space = Space::new(&engine).unwrap();
        let request = MapRequest::file(&other, 0, PAGE_SIZE, Protection::READ).at(Placement::Fixed(at(1)));
        space.map(request).expect("a mapping");
        let Fault::Pending(pending) = space.fault(at(1), Access::Read).unwrap() else { panic!("it is read") };
        let punched = file.clone();
        let punch = spawn(1, move || punched.handle().punch_hole(0, PAGE_SIZE).unwrap());
        let mut byte = [1];
        assert_eq!(file.handle().read_at(0, &mut byte).unwrap(), 1);
        punch.join().unwrap();
        drop(slow.0.lock().unwrap().take());
        drop(pending);
        close(file);
        other.set_length(0);
        end(&engine, space);
    });
}

/// A store of one page that keeps its read.
struct Slow(Mutex<Option<Transfer>>);

impl Store for Slow {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGE_SIZE)
    }

    fn submit(&self, transfer: Transfer) {
        *self.0.lock().unwrap() = Some(transfer);
    }
}
