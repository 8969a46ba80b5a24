//! Models of a file that grows while other threads write it back, and of a file that is read again. As `loom.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_files`
#![cfg(loom)]

mod models;

use faultless::address::PAGE_SIZE;
use faultless::errno::EIO;
use faultless::protection::Access;
use faultless::store::{Bytes, Direction, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{Engine, Fault, File, FileError, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use models::{READ_WRITE, Space, at, beside, close, end, model, spawn};
use std::sync::{Arc, Mutex};

const WORD: usize = 8;

struct State {
    length: u64,
    /// The first word of the page.
    word: [u8; WORD],
    /// The bytes that the device has.
    flushed: [u8; WORD],
    /// Writes that were submitted and have not ended.
    held: Vec<Transfer>,
    /// Whether writes end at once.
    is_prompt: bool,
    /// Whether the next flush fails, and loses the bytes that the device does not have.
    fails: bool,
}

/// A store of one page, whose writes end when the test ends them.
struct Page {
    state: Mutex<State>,
}

impl Page {
    fn new(length: u64) -> Arc<Self> {
        let (word, flushed) = ([0; WORD], [0; WORD]);
        let state = State { length, word, flushed, held: Vec::new(), is_prompt: false, fails: false };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn word(&self) -> u64 {
        u64::from_ne_bytes(self.state.lock().unwrap().word)
    }

    fn carry_out(&self, mut transfer: Transfer) {
        let state = self.state.lock().unwrap();
        match transfer.bytes() {
            Bytes::Read(bytes) => bytes[..WORD].copy_from_slice(&state.word),
            // The bytes were taken when the write was submitted.
            Bytes::Write(_) => {}
        }
        let length = state.length;
        drop(state);
        transfer.complete(Ok(length.min(PAGE_SIZE) as usize));
    }

    /// Ends the held writes.
    fn end(&self) {
        let held = std::mem::take(&mut self.state.lock().unwrap().held);
        held.into_iter().for_each(|transfer| self.carry_out(transfer));
    }
}

impl Store for Page {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.state.lock().unwrap().length)
    }

    fn submit(&self, mut transfer: Transfer) {
        let mut state = self.state.lock().unwrap();
        if let Bytes::Write(bytes) = transfer.bytes() {
            state.word.copy_from_slice(&bytes[..WORD]);
        }
        if transfer.direction() == Direction::Read || state.is_prompt {
            drop(state);
            self.carry_out(transfer);
        } else {
            state.held.push(transfer);
        }
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap();
        state.length = length;
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap();
        if std::mem::take(&mut state.fails) {
            state.word = state.flushed;
            return Err(StoreError::Io { offset: 0, errno: EIO });
        }
        state.flushed = state.word;
        Ok(())
    }
}

fn open(store: &Arc<Page>) -> (Arc<Engine<Soft>>, Shared<File<Soft>>) {
    let engine = Engine::new(Soft::new(6).expect("frames"), Limits::default()).expect("memory for an engine");
    let file = File::open_rw(&engine, store.clone()).expect("a store with a length");
    (engine, file)
}

/// A file that grows waits for a write of its last page. That write has the shorter length, and is correct.
#[test]
fn growth_against_a_write_of_the_last_page() {
    model(2, || {
        let store = Page::new(WORD as u64);
        let (engine, file) = open(&store);
        file.handle().write_at(0, &1_u64.to_ne_bytes()).unwrap();
        let (other, ends) = (file.clone(), store.clone());
        let write = spawn(1, move || {
            other.handle().start_sync();
            let (length, is_held) = (other.length(), !ends.state.lock().unwrap().held.is_empty());
            // While the write is under way.
            loom::thread::yield_now();
            assert!(!is_held || other.length() == length, "invariant 14: a length changed under a write");
            ends.end();
        });
        file.handle().set_length(2 * WORD as u64).unwrap();
        write.join().unwrap();
        file.handle().start_sync();
        store.end();
        assert_eq!(file.handle().sync(), Ok(()), "invariant 14: a write was taken to be too short");
        assert_eq!((store.word(), store.length()), (1, Ok(2 * WORD as u64)));
        close(file);
        end(&engine, Space::new(&engine).unwrap());
    });
}

/// A store through a mapping of a page that is removed to be read again. The store is kept, or it has to wait.
#[test]
fn a_store_beside_reading_anew() {
    model(2, || {
        let store = Page::new(PAGE_SIZE);
        let (engine, file) = open(&store);
        let space = Space::new(&engine).unwrap();
        let request = MapRequest::shared_file(&file, 0, PAGE_SIZE, READ_WRITE);
        space.map(request.at(Placement::Fixed(at(1)))).unwrap();
        assert_eq!(space.load_u64(at(1)).unwrap(), 0);
        let stores = beside(&space, move |other| {
            matches!(other.fault(at(1), Access::Write), Ok(Fault::Done))
                && other.try_store_u64(at(1), 7).is_ok()
        });
        match file.refresh(0, PAGE_SIZE) {
            Ok(()) | Err(FileError::Dirty { offset: 0 }) => {}
            Err(error) => panic!("{error}"),
        }
        let last = if stores.join().unwrap() { 7 } else { 0 };
        assert_eq!(space.load_u64(at(1)).unwrap(), last, "invariant 9: a store was lost");
        close(file);
        end(&engine, space);
    });
}

/// The same, and then a sync: when it returns, earlier stores are in the store.
#[test]
fn a_sync_beside_reading_anew() {
    model(2, || {
        let store = Page::new(PAGE_SIZE);
        store.state.lock().unwrap().is_prompt = true;
        let (engine, file) = open(&store);
        let space = Space::new(&engine).unwrap();
        let request = MapRequest::shared_file(&file, 0, PAGE_SIZE, READ_WRITE);
        space.map(request.at(Placement::Fixed(at(1)))).unwrap();
        assert_eq!(space.load_u64(at(1)).unwrap(), 0);
        let other = file.clone();
        let refresh = spawn(1, move || other.refresh(0, PAGE_SIZE));
        let is_done = matches!(space.fault(at(1), Access::Write), Ok(Fault::Done));
        if is_done && space.try_store_u64(at(1), 7).is_ok() {
            file.handle().sync().unwrap();
            assert_eq!(store.word(), 7, "invariant 9: a sync missed an earlier store");
        }
        let _ = refresh.join().unwrap();
        close(file);
        end(&engine, space);
    });
}

/// A write to parts of two pages beside a truncation to nothing: either comes first.
#[test]
fn a_write_of_two_pages_beside_a_cut() {
    model(2, || {
        let engine =
            Engine::new(Soft::new(6).expect("frames"), Limits::default()).expect("memory for an engine");
        let file = File::in_memory(&engine, 2 * PAGE_SIZE).expect("memory for a file");
        let other = file.clone();
        let cut = spawn(1, move || other.handle().set_length(0).unwrap());
        let (start, bytes) = (PAGE_SIZE - WORD as u64, [7; 2 * WORD]);
        let written = file.handle().write_at(start, &bytes).unwrap();
        cut.join().unwrap();
        if file.length() > 0 {
            let mut back = [0; 2 * WORD];
            assert_eq!((written, file.handle().read_at(start, &mut back)), (2 * WORD, Ok(2 * WORD)));
            assert_eq!(back, bytes, "invariant 14: a write was torn by a truncation");
        }
        close(file);
        end(&engine, Space::new(&engine).unwrap());
    });
}

/// The same beside a punched hole over both pages.
#[test]
fn a_write_of_two_pages_beside_a_hole() {
    model(2, || {
        let engine =
            Engine::new(Soft::new(8).expect("frames"), Limits::default()).expect("memory for an engine");
        let file = File::in_memory(&engine, 2 * PAGE_SIZE).expect("memory for a file");
        let (start, before, bytes) = (PAGE_SIZE - WORD as u64, [1; 2 * WORD], [7; 2 * WORD]);
        file.handle().write_at(start, &before).unwrap();
        let other = file.clone();
        let hole = spawn(1, move || other.handle().punch_hole(0, 2 * PAGE_SIZE).unwrap());
        let written = file.handle().write_at(start, &bytes).unwrap();
        hole.join().unwrap();
        let mut back = [0; 2 * WORD];
        assert_eq!(file.handle().read_at(start, &mut back), Ok(2 * WORD));
        // If the write ended early, it came first.
        let last = if written == 2 * WORD { bytes } else { [0; 2 * WORD] };
        assert!(back == last || back == [0; 2 * WORD], "invariant 14: a write was torn by a hole: {back:?}");
        close(file);
        end(&engine, Space::new(&engine).unwrap());
    });
}

/// A write whose bytes are in the store's buffers when a flush fails, and which ends after that.
#[test]
fn a_flush_that_fails_beside_the_end_of_a_write() {
    model(2, || {
        let store = Page::new(PAGE_SIZE);
        let (engine, file) = open(&store);
        store.state.lock().unwrap().fails = true;
        let other = file.clone();
        let flush = spawn(1, move || other.handle().sync());
        file.handle().write_at(0, &1_u64.to_ne_bytes()).unwrap();
        file.handle().start_sync();
        // The transfers that are held now end below. No others are held.
        store.state.lock().unwrap().is_prompt = true;
        loom::thread::yield_now();
        store.end();
        let _ = flush.join().unwrap();
        file.handle().start_sync();
        assert_eq!(store.word(), 1, "invariant 9: a failed flush lost a page");
        close(file);
        end(&engine, Space::new(&engine).unwrap());
    });
}

/// A page is written and not flushed. A flush fails, and another sync runs beside it.
#[test]
fn a_sync_beside_a_failing_flush() {
    model(2, || {
        let store = Page::new(PAGE_SIZE);
        store.state.lock().unwrap().is_prompt = true;
        let (engine, file) = open(&store);
        file.handle().write_at(0, &1_u64.to_ne_bytes()).unwrap();
        file.handle().start_sync();
        store.state.lock().unwrap().fails = true;
        let other = file.clone();
        let flush = spawn(1, move || other.handle().sync());
        let result = file.handle().sync();
        let flushed = u64::from_ne_bytes(store.state.lock().unwrap().flushed);
        assert!(
            result.is_err() || flushed == 1,
            "invariant 9: a sync said Ok, and the device has lost the page"
        );
        let _ = flush.join().unwrap();
        assert_eq!(file.handle().sync(), Ok(()), "each handle is told once");
        assert_eq!(u64::from_ne_bytes(store.state.lock().unwrap().flushed), 1);
        close(file);
        end(&engine, Space::new(&engine).unwrap());
    });
}
