//! Models of a file that grows while others write it back, and of one that is read anew. As `loom.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_files`
#![cfg(loom)]

mod models;

use faultless::address::PAGE_SIZE;
use faultless::protection::Access;
use faultless::store::{Bytes, Direction, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{Engine, Fault, File, FileError, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use models::{READ_WRITE, Space, at, close, end, model, spawn};
use std::sync::{Arc, Mutex};

const WORD: usize = 8;

struct State {
    length: u64,
    /// The first word of its page.
    word: [u8; WORD],
    /// Writes that have been submitted and have not ended.
    held: Vec<Transfer>,
}

/// A store of one page, whose writes end when the test says so.
struct Page {
    state: Mutex<State>,
}

impl Page {
    fn new(length: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { length, word: [0; WORD], held: Vec::new() }) })
    }

    fn word(&self) -> u64 {
        u64::from_ne_bytes(self.state.lock().unwrap().word)
    }

    fn carry_out(&self, mut transfer: Transfer) {
        let mut state = self.state.lock().unwrap();
        match transfer.bytes() {
            Bytes::Read(bytes) => bytes[..WORD].copy_from_slice(&state.word),
            Bytes::Write(bytes) => state.word.copy_from_slice(&bytes[..WORD]),
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
        match transfer.direction() {
            Direction::Read => self.carry_out(transfer),
            Direction::Write => self.state.lock().unwrap().held.push(transfer),
        }
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap();
        state.length = length;
        Ok(())
    }
}

fn open(store: &Arc<Page>) -> (Arc<Engine<Soft>>, Shared<File<Soft>>) {
    let engine = Engine::new(Soft::new(6).expect("frames"), Limits::default()).expect("memory for an engine");
    let file = File::open_rw(&engine, store.clone()).expect("a store with a length");
    (engine, file)
}

/// A file that grows waits for a write of its last page. That write is sized by the shorter length, and is all right.
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
            // While it is under way.
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

/// A store through a mapping of a page that is being taken away to be read anew. It is kept, or it has to wait.
#[test]
fn a_store_beside_reading_anew() {
    model(2, || {
        let store = Page::new(PAGE_SIZE);
        let (engine, file) = open(&store);
        let space = Space::new(&engine).unwrap();
        let request = MapRequest::shared_file(&file, 0, PAGE_SIZE, READ_WRITE);
        space.map(request.at(Placement::Fixed(at(1)))).unwrap();
        assert_eq!(space.load_u64(at(1)).unwrap(), 0);
        let other = space.clone();
        let stores = spawn(1, move || {
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
