//! Linux's maple tree, if `scripts/maple.sh` has built it. It is GPL and no part of this repository: a shared object
//! that is loaded if it exists.
#![allow(unsafe_code)]

use super::{Found, Handle, Index, Item};
use libloading::Library;
use std::error::Error;
use std::ffi::{c_int, c_ulong, c_void};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::OnceLock;

/// The path at which `scripts/maple.sh` puts it. The environment variable names another one.
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/maple/libmaple.so");
const PATH_VARIABLE: &str = "FAULTLESS_MAPLE";

type Tree = NonNull<c_void>;

/// The functions of `maple/maple.c`.
pub struct Maple {
    thread_begins: unsafe extern "C" fn(),
    thread_ends: unsafe extern "C" fn(),
    section: unsafe extern "C" fn(*const c_ulong) -> c_ulong,
    new: unsafe extern "C" fn(c_int) -> Option<Tree>,
    free: unsafe extern "C" fn(Tree),
    find: unsafe extern "C" fn(Tree, c_ulong, *mut c_ulong, *mut c_ulong) -> c_int,
    insert: unsafe extern "C" fn(Tree, c_ulong, c_ulong, c_ulong) -> c_int,
    remove: unsafe extern "C" fn(Tree, c_ulong) -> c_int,
    /// Stays loaded for ever, because its threads call back into it.
    _library: Library,
}

impl Maple {
    /// Returns the library, which the first call loads.
    ///
    /// # Errors
    /// The reason for which it is not available: it is not built, or cannot be loaded.
    pub fn get() -> Result<&'static Self, String> {
        static MAPLE: OnceLock<Result<Maple, String>> = OnceLock::new();
        MAPLE.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, String> {
        let path = std::env::var_os(PATH_VARIABLE).map_or_else(|| PATH.into(), PathBuf::from);
        if !path.exists() {
            return Err("not built; run scripts/maple.sh to build it".into());
        }
        let cannot = |error: libloading::Error| {
            let why = error.source().map_or(String::new(), |why| format!(": {why}"));
            format!("cannot load {}: {error}{why}", path.display())
        };
        // SAFETY: the script built the object from maple.c. Loading it runs no code of its own, and the names have the
        // types that maple.c gives them. `bench_maple_init` is called once, before anything else.
        unsafe {
            let library = Library::new(&path).map_err(cannot)?;
            macro_rules! function {
                ($name:literal) => {
                    *library.get($name).map_err(cannot)?
                };
            }
            let init: unsafe extern "C" fn() = function!("bench_maple_init");
            let maple = Self {
                thread_begins: function!("bench_maple_thread_begins"),
                thread_ends: function!("bench_maple_thread_ends"),
                section: function!("bench_maple_section"),
                new: function!("bench_maple_new"),
                free: function!("bench_maple_free"),
                find: function!("bench_maple_find"),
                insert: function!("bench_maple_insert"),
                remove: function!("bench_maple_remove"),
                _library: library,
            };
            init();
            Ok(maple)
        }
    }

    /// Registers the calling thread, which may use trees and sections until the result is dropped.
    pub fn enter(&'static self) -> Member {
        // SAFETY: the library is loaded; in the whole bench a thread has one of these at a time.
        unsafe { (self.thread_begins)() };
        Member { maple: self, not_send: PhantomData }
    }
}

/// A thread that is registered with liburcu.
pub struct Member {
    maple: &'static Maple,
    not_send: PhantomData<*const ()>,
}

impl Member {
    /// Reads a word inside a read section of liburcu.
    #[inline]
    pub fn read(&self, word: &u64) -> u64 {
        // SAFETY: the thread is registered; the word is read while it is borrowed.
        unsafe { (self.maple.section)(word) }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // SAFETY: this thread was registered, and is in no section.
        unsafe { (self.maple.thread_ends)() };
    }
}

/// A maple tree. With `RCU` its readers need no lock, and replaced nodes are freed by call_rcu.
pub struct MapleTree<const RCU: bool> {
    maple: &'static Maple,
    tree: Tree,
}

// SAFETY: the tree's own lock serialises its writers. With RCU, readers may run beside them; without it, the bench has
// none.
unsafe impl<const RCU: bool> Send for MapleTree<RCU> {}
// SAFETY: as above.
unsafe impl<const RCU: bool> Sync for MapleTree<RCU> {}

impl<const RCU: bool> Index for MapleTree<RCU> {
    type Handle<'a> = Of<'a>;

    fn name() -> String {
        if RCU { "Linux maple tree, RCU".into() } else { "Linux maple tree, no RCU".into() }
    }

    fn new() -> Result<Self, String> {
        let maple = Maple::get()?;
        // SAFETY: the library is loaded.
        let tree = unsafe { (maple.new)(RCU.into()) };
        Ok(Self { maple, tree: tree.ok_or("no memory for a maple tree")? })
    }

    fn handle(&self) -> Of<'_> {
        Of { member: self.maple.enter(), tree: self.tree, life: PhantomData }
    }
}

impl<const RCU: bool> Drop for MapleTree<RCU> {
    fn drop(&mut self) {
        let _member = self.maple.enter();
        // SAFETY: no other code uses the tree; the thread is registered.
        unsafe { (self.maple.free)(self.tree) };
    }
}

/// A thread's handle.
pub struct Of<'a> {
    member: Member,
    tree: Tree,
    life: PhantomData<&'a ()>,
}

impl Handle for Of<'_> {
    #[inline]
    fn find(&mut self, page: u64) -> Option<Found> {
        let (mut end, mut word) = (0, 0);
        // SAFETY: the thread is registered, the tree lives, and both words are this function's own.
        let found = unsafe { (self.member.maple.find)(self.tree, page, &mut end, &mut word) };
        (found != 0).then_some(Found { end, word })
    }

    fn insert(&mut self, item: Item) {
        // SAFETY: as above.
        let errno = unsafe { (self.member.maple.insert)(self.tree, item.start, item.end, item.word) };
        assert_eq!(errno, 0, "the maple tree refuses a range");
    }

    fn remove(&mut self, start: u64, _end: u64) -> bool {
        // SAFETY: as above.
        unsafe { (self.member.maple.remove)(self.tree, start) != 0 }
    }
}
