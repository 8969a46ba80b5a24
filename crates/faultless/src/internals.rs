//! How it works inside: the idea, the path of a fault, the place of each call, the order of locks, and the reasons for safety.
//!
//! # The idea
//!
//! A thread that touches one page *announces* it in that page's own table entry, by one bit. A thread that changes a range
//! publishes the change, then *sweeps* the entries and waits where it meets the bit. No thread waits for I/O or memory
//! while announced or sweeping.
//!
//! ```text
//!   page work (a fault)                          range work (unmap, protect, map over, fork, exit)
//!   ───────────────────                          ─────────────────────────────────────────────────
//!   enter the read section                       take the range among other range work
//!   set the bit in the entry ◄───── fence ─────► publish new VMAs: one store into the tree
//!   look the VMA up                              sweep the entries, waiting at each bit
//!   install: one store, which clears the bit     invalidate; only then free frames; let the range go
//! ```
//! Either the sweep meets the bit and waits, or the look-up finds the new mapping. The wait is short: an announced
//! thread never sleeps. Two faults write no line in common, however large the mapping.
//!
//! # The way of a fault
//!
//! 1. [`AddressSpace::fault`] (`space/fault/mod.rs`) is the one entry for every host. It calls page work,
//!    `space/fault/page_work.rs`: read section, bit, fence, look-up, and the check that the leaf table still hangs. A leaf table that
//!    a fork has left shared is copied before that (`space/fault/shared_table.rs`). It is not copied if the fault brings a page back
//!    for all spaces that have the table (`space/fault/shared_page.rs`).
//! 2. `classify` determines the work that the page needs, from mapping and entry; `finish` does it, in `anonymous.rs`,
//!    `file.rs` or `copy_on_write.rs`, each a page long. `course.rs` has the steps between two tries, with nothing
//!    announced: it makes room where there was no frame, or begins a read.
//!
//!    A store into a shared mapping makes the file's folio dirty, and only then gets the right; writeback takes the
//!    right away before it reads the bytes (`page_cache/writeback.rs`). While a page is on its way, a store waits as in 3.
//! 3. A fault that needs I/O pins the folio, starts the read (`page_cache/mod.rs`), and becomes a [`PendingFault`]: a value that
//!    holds no lock. When the read is done it announces again, compares by value, and maps the folio it pinned
//!    (`space/fault/pending.rs`).
//!
//! 4. A fault that finds no free frame lets everything go, reclaims (`reclaim/walk.rs`), and starts over. A fault that
//!    meets an entry with a slot maps the folio of the slot, or reads it and becomes a pending fault (`space/fault/swapped.rs`).
//!    A page of a file without a store may be in a slot too. The file's index names that slot, and the fault asks the file as in 3.
//!
//! # Where each call is
//!
//! In `space/calls/`, one verb a file. Those that change mappings share `space/change/`: `range_change.rs` (the things
//! that a call holds, and the order in which it lets go), `range_work.rs` (the steps), `publish.rs` (how the map
//! becomes another), `concurrent.rs` (changes of disjoint parts side by side) and `moving.rs`.
//!
//! | call | file |
//! |---|---|
//! | mmap, munmap | `map.rs`, `unmap.rs` |
//! | mprotect; downwards to the start of a stack | `protect.rs`; `grow.rs` |
//! | mremap: checking the request; in place or to a new place; moving the pages | `remap/plan.rs`; `remap.rs`; `../change/moving.rs` |
//! | brk; a fault below a mapping that grows down | `brk.rs`; `grow.rs` |
//! | frames that the engine does not own | `../foreign.rs` |
//! | madvise: the rules of each advice | `advise.rs` |
//! | … DONTNEED; REMOVE; guards; POPULATE, and the fetching of mlock and MAP_POPULATE | `discard.rs`; `remove.rs`; `guard.rs`; `populate.rs` |
//! | mlock, mlockall; mseal; the part they share with madvise | `lock.rs`; `seal.rs`; `flags.rs` |
//! | mincore; msync | `resident.rs`; `sync_file.rs` |
//! | fork, the leaf tables that it shares; exit, reap | `fork.rs`, `../fault/shared_table.rs`, `tables/`; `exit.rs` |
//! | making pages the space's own ahead of a store; leaving a family of tables | `unshare.rs`, `../fault/unshare.rs`; `isolate.rs` |
//! | the choice of a space that is ended for lack of memory | `limit/victim.rs`, `../victim.rs` |
//! | moving pages between mappings, without a change of mappings | `move_pages.rs` |
//! | another space's memory; advice about it; pages pinned for a device | `remote.rs`; `advise_remote.rs`; `pin.rs` |
//! | the maps of a process; their pages | `listing.rs`; `usage.rs` |
//! | the limits of a space | `../limits.rs` |
//! | read, write, fsync, ftruncate, fallocate of a file | `page_cache/handle.rs`, `resize.rs`, `zeros.rs`; a space's part in it: `space/truncate.rs` |
//! | the background worker: free frames, groups below their limits; dirty pages | `background/`; `page_cache/dirty.rs` |
//! | reading ahead of use, in runs; how reads end | `page_cache/ahead.rs`; `page_cache/reading.rs` |
//! | reading a file's pages anew; a write of several pages beside truncation | `page_cache/refresh.rs`; `page_cache/writers.rs` |
//! | errors of writes, and the pause after many; the writes of a file that is dropped | `page_cache/errors.rs`; `page_cache/last_writes.rs` |
//! | pages of files without a store in swap space | `page_cache/in_slots.rs`, `frame/file_in_memory.rs` |
//!
//! mremap moves pages by their entries. While they are on their way the mapping says so at both places, and page work that
//! meets it waits, as it does for a mapping placed over an existing one (MAP_FIXED; `moving.rs` has the steps).
//!
//! Each call has an error type of its own, which names the address or range and gives Linux's number by `errno`. Where an
//! argument is an enumeration, unknown flags cannot be passed. Where it is a set of bits, unknown bits are refused
//! ([`AddressSpace::sync`], [`AddressSpace::remap`], [`AddressSpace::lock_all`]); mmap ignores them.
//!
//! # Words
//!
//! * *Announcement*: the bit [`host::Entry::ANNOUNCED`]. *Page work*: the work done under it.
//! * *Range work*: a change of mappings; it holds a *reservation*, [`sync::Reservation`].
//! * *Read section*, [`sync::Section`]: says that its thread reads the tree and the tables; nothing else. A node
//!   or table that is unhooked is *retired*, and freed after a *grace period*, when all older sections have ended.
//! * *Guard page*: an entry that names no frame and refuses accesses ([`host::Entry::GUARD`]); its mapping is not split.
//! * *Pending fault*: a fault that waits. *Record*, [`vma::AnonRecord`]: whether a mapping has anonymous pages,
//!   and the number by which Linux's rules of merging go.
//! * *Slot*: the place in swap space of a page's bytes while no frame has them. *Attached*: said of the folio that has a slot's bytes.
//! * *Home*: the table entry, or the family of leaf tables, that an anonymous folio names as its mapping (docs/home.md).
//!
//! # Lock order
//!
//! ```text
//! a file's length: a change, a hole, reading anew     sleeps: until transfers of the removed part have ended; the store is asked
//!   a folio's lock                                    sleeps: until its write has ended; not while looking at entries
//! a design's own lock (none in the default design)
//!   a range taken                                     sleeps: other range work on the same pages
//!     the tree lock                                   a few instructions, and waits for edits; no thread waits for another processor with it
//!       an edit, begun under it, held without         sleeps: only until another one has changed a node of the tree
//!       a file's list of spaces
//!     an entry's bit                                  never held while one sleeps; one at a time, and two by a move of pages
//! leaves, under which nothing is taken: a file's removal lock, its errors, its list of writes under way; the lock under which
//! a page leads to its file; the list of spaces that may be ended for lack of memory; a slot's list of retired things; a queue of
//! sleeping threads; the locks of a swap device in compressed memory. A
//! handle's account is taken before its file's errors.
//! ```
//! One exception: the lock of a shared leaf table is tried for in a read section, and never waited for there. The lock of an
//! anonymous folio is tried for with an entry's bit, for a few steps (`space/fault/swapped.rs`). The queues of reclaim have a
//! leaf lock, which no fault takes with something announced. The list of files that may have dirty pages has a leaf lock too.
//!
//! A thread in a read section, so a thread that has announced, takes none of these but the bit; debug builds check
//! it at every place that may sleep ([`Engine::assert_may_sleep`]). A thread that drops the last use of a file's page may be in a
//! section: it changes the folio's word, and nothing else.
//! Grace periods and `invalidate` wait for read sections, so they are awaited in no section; with a range taken they may be,
//! since sections do not wait.
//!
//! None of these is held while memory that a caller gave is touched: bytes go by a page of the engine's own. Debug builds
//! check it ([`Engine::assert_holds_nothing`]).
//!
//! # The locks that each read and write needs
//!
//! | | read section | bit of the entry | range taken | tree lock |
//! |---|---|---|---|---|
//! | tree, VMAs | read | read | read the part in the range; replace the part that an edit names ([`sync::Edit`]) | read, replace |
//! | tables | read; make a missing leaf; get an own one for a shared one | the same | the same; unhook a leaf all inside a hole | – |
//! | an entry of a shared table | read; with the lock of the table's record, reclaim and a read fault exchange it | – | – | – |
//! | an entry without the bit | announce | – | exchange, after publication | – |
//! | an entry with the bit | – | install, by the thread that set it | wait | – |
//! | a folio's state | dirty, before it gives the write right | dirty | – | – |
//! | a frame's bytes | through an entry, as a processor | fill a new one, copy | – | – |
//! | a folio's word | take a reference unless free | count, reuse, share | drop, after `invalidate` | – |
//! | an anonymous folio's home | follow, once the word has shown a mapping | write, if it names the entry or this is the only mapping | the same | – |
//!
//! # Memory safety
//!
//! No safe call of this crate's public functions breaks memory safety, of the host or of a process in a space, in any
//! order and on any thread. Values may be forgotten: a forgotten [`PinnedPage`], [`FolioLock`], [`PendingFault`] or
//! reservation keeps its page, range, claim or turn for good, and others may wait for it for ever, but nothing is freed
//! early. Code that implements an `unsafe trait` ([`host::Host`], `host::StdHost`, [`host::PageTable`] and its
//! abilities, [`host::FrameSource`], [`host::Slots`], [`sync::Stable`], [`sync::ShortLock`], [`vma::tree::Ranged`]), or
//! calls an `unsafe fn`, must meet the conditions under `# Safety`. A [`store::Store`] and a [`design::LockingDesign`]
//! are safe to implement: a wrong one spoils contents or order, or waits for ever; it reaches no frame, entry or
//! retired thing but by safe calls. Not covered: a [`vma::tree::Tree`] of one's own that is given unsorted items. An
//! engine's tree gets none.
//!
//! | module with unsafe code | relies on | guaranteed by |
//! |---|---|---|
//! | `host/caller.rs`: the unsafe calls of the host | one owner of each frame, one of each entry; `invalidate` before a frame is freed | folios' words (`frame.rs`, private to the crate), the bit, ranges taken; a table in that module says which |
//! | `sync/section.rs`, `sync/retired.rs` | one thread a slot; the same barrier at both ends; retired things are reached in sections only | [`host::Slots`]; the host's one barrier; `Engine::retire` is private, [`sync::Sections::retire`] unsafe |
//! | `sync/short_lock.rs` | one thread at a time has a lock's word | [`sync::ShortLock`], which a program without `std` chooses |
//! | `sync/ranges.rs`, `sync/life.rs`, `sync/shared.rs` | only the thread that has taken a span unhooks there; layouts; counts that do not overflow | [`sync::Ranges`]; the allocator; `Shared::clone` panics before |
//! | `vma/tree*` | items and nodes are freed after a grace period; writers do not overlap | [`sync::Section`] as the key to a view; [`vma::tree::Writer`], and edits' hulls ([`sync::Edit`]) |
//! | `engine.rs` | the conditions of sections; no section is left when the engine is dropped | sections borrow the engine; [`Engine::enter_section`] is unsafe |
//! | `tables/follow.rs` | the record or the family that a home names is memory until the section ends | rule H1 of docs/home.md: home is redirected before the mapping is dropped, and that before the table is retired |
//! | `tables/family.rs` | a record in a family's list is memory; a family has records | rule H4: a record leaves the list before its table is retired, and is counted until it ends |
//! | `space/calls/isolate.rs` | no home of a table's pages names the family that it leaves | the range that is taken; a grace period before the homes are set, and one after |
//! | `limit/victim.rs` | a weak handle keeps its memory when its type is erased | the pointer stays the same |
//! | `reclaim/space_head.rs`, `space/reclaim.rs` | a space found by a record is memory until the section ends; its first field is its head | rule H5: a space is freed a grace period after its last table; `Space` is `repr(C)` |
//! | `reclaim/shared_table.rs` | a leaf table found by its record is memory, and its entries are this thread's | the section in which home was followed (rule H1); the record's lock |
//! | `tables/`: `record.rs`, `share.rs` | records and spare tables stay; a place is changed by one thread at a time | a space that has left a leaf is counted in its record until it has invalidated; the record's lock; the thread that shares has taken the child's range |
//! | `space/`: `mod.rs`, `calls/exit.rs`, `calls/fork.rs`, `change/concurrent.rs` | a table is new and of this host; the tree goes after a grace period | the host just made it; `clear` waits |
//! | `page_cache/`: `mod.rs`, `reading.rs`, `writeback.rs`, `index.rs`, `reclaim.rs` | a page that is being read is not used, a page that is being written is not written by others; index nodes live as long as the file | READING and WRITEBACK; the file owns its index; rule H7 of docs/home.md: a file lets its pages go, and then takes the lock under which they lead to it |
//! | `host/std_host.rs` | frames and tables are as `Host` demands | the implementation of `StdHost` |
//! | `host/standard.rs`, `vma/mod.rs` | `Slots`: one thread a slot; `Ranged`: a range that does not change | a thread-local number; a VMA is immutable |
//! | `sync/once_box.rs`, `swap/table.rs` | a filled box stays; memory of zeros is an empty chunk | the place is filled once, and goes with the engine; slots and places are atomic numbers |
//! | `swap/transfer.rs` | a page that is being read is not used, a page that is being written is not written by others | READING and WRITEBACK: a table in that module says which |
//! | `store/transfer.rs` | the memory of a transfer, whose pages do not overlap | [`store::Transfer::new`]; [`store::Bytes`] gives exclusive access for a read only |
//! | `host/membarrier.rs` | a call of the kernel without pointers | – |
//!
//! The host's processors use frames while others do: so a host makes each access to a mapped frame atomic (a software
//! machine), or makes it outside of this program's memory model (hardware, another process).
//!
//! # Designs
//!
//! The locks of page work and range work, and those that a fault keeps through I/O, are a plug-in: [`design::LockingDesign`].
//! The default, [`design::Faultless`], takes nothing but the bit. The laboratory runs its rivals in this same engine.

#[cfg(doc)]
#[allow(unused_imports, reason = "links of the documentation")]
use crate::*;
