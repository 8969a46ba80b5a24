use super::*;

#[test]
fn reuse_in_place_counts_pins() {
    let folio = Folio::new();
    folio.begin_anonymous(Home::NONE);
    assert_eq!(folio.try_share(), Share::Shared);
    assert_eq!(folio.try_get(Reference::IoPin), Ok(()));
    assert!(!folio.put(Reference::Mapping));
    assert!(!folio.try_reuse(), "invariant 6: reused in place while it is pinned");
    assert!(!folio.put(Reference::IoPin));
    assert!(folio.try_reuse());
    assert!(folio.put(Reference::Mapping));
}

/// A folio as a page of a file whose counts are at no real place.
fn home() -> Home {
    Home::of_file(core::ptr::NonNull::<u64>::dangling().cast(), true)
}

/// A file's page that has been read, with one pin, isolated.
fn isolated_page() -> Folio {
    let folio = Folio::new();
    folio.begin_reading(home(), 0, 1);
    assert_eq!(folio.try_isolate(), None, "being read");
    folio.finish_read();
    assert_eq!(folio.try_isolate(), Some(Isolation::File));
    folio
}

#[test]
fn eviction_takes_only_what_nobody_uses() {
    let folio = isolated_page();
    assert!(folio.is_pinned_by_others() && !folio.try_evict_isolated(), "another pin");
    assert!(folio.take_referenced() && !folio.take_referenced(), "used since the last look");
    assert!(!folio.put(Reference::Pin) && !folio.is_pinned_by_others());
    assert_eq!(folio.try_get(Reference::Mapping), Ok(()));
    assert!(folio.take_referenced() && !folio.try_evict_isolated(), "mapped");
    assert!(!folio.put(Reference::Mapping));
    assert!(folio.try_evict_isolated() && folio.is_free());
    assert_eq!(folio.try_get(Reference::Pin), Err(Refused::Free), "a free frame cannot be pinned");
}

#[test]
fn what_is_dirty_or_being_written_is_not_evicted() {
    let folio = isolated_page();
    assert_eq!((folio.try_dirty(), folio.try_dirty()), (Some(true), Some(false)));
    assert!(!folio.put(Reference::Pin) && !folio.try_evict_isolated());
    folio.end_isolation();
    assert_eq!(folio.try_isolate(), Some(Isolation::DirtyFile));
    assert!(!folio.put(Reference::Pin));
    assert!(folio.begin_writeback() && !folio.begin_writeback());
    assert_eq!(folio.try_dirty(), None, "the bytes stand still");
    assert!(!folio.try_evict_isolated());
    folio.end_writeback(true);
    assert!(folio.is_dirty() && !folio.try_evict_isolated(), "invariant 9: a failed write keeps it dirty");
    assert!(folio.begin_writeback());
    folio.end_writeback(false);
    assert!(folio.try_evict_isolated());
}

/// Rule H7 of docs/home.md: such a page leads to no file.
#[test]
fn a_page_that_its_file_has_let_go_has_no_file() {
    let folio = Folio::new();
    assert_eq!(folio.cached_home(), None, "a free frame");
    folio.begin_dirty(home(), 0, Reference::Pin);
    assert_eq!(folio.cached_home(), Some(home()));
    folio.keep_for_write();
    assert_eq!(folio.cached_home(), None);
    assert!(folio.try_isolate().is_none(), "reclaim does not take it");
    assert!(!folio.put(Reference::Pin) && folio.put(Reference::Pin));
    folio.begin_anonymous(Home::NONE);
    assert_eq!(folio.cached_home(), None);
    assert!(folio.put(Reference::Mapping));
}

#[test]
fn a_full_count_refuses() {
    let folio = Folio::new();
    folio.begin_anonymous(Home::NONE);
    while folio.try_get(Reference::IoPin).is_ok() {}
    assert_eq!(folio.try_get(Reference::IoPin), Err(Refused::Full));
    assert_eq!(folio.mappings(), 1);
    assert!(folio.is_exclusive() && folio.try_share() == Share::Pinned);
}

#[test]
fn copies_of_tables_count_beyond_where_others_are_refused() {
    let folio = Folio::new();
    folio.begin_dirty(home(), 3, Reference::Mapping);
    folio.word.fetch_add(MAPPINGS_FULL - 2, Ordering::Relaxed);
    assert!(!folio.is_mapping_full());
    assert!(folio.count_copy(), "full by this one");
    assert!(folio.is_mapping_full());
    assert_eq!((folio.try_share(), folio.try_get(Reference::Mapping)), (Share::Full, Err(Refused::Full)));
    // The largest number of tables that may be shared, each with the page as often as allowed.
    (0..MAX_SHARED_TABLES * MAX_SAME_PAGE).for_each(|_| assert!(folio.count_copy()));
    assert_eq!(folio.word.load(Ordering::Relaxed) & (PINS | IO_PINS), 0);
    assert_eq!(folio.mappings(), MAPPINGS_FULL + MAX_SHARED_TABLES * MAX_SAME_PAGE);
}

#[test]
fn a_cancelled_life_leaves_others_their_references() {
    let folio = Folio::new();
    folio.begin_reading(home(), 0, 2);
    assert_eq!(folio.try_get(Reference::Pin), Ok(()), "a pin that was meant for an older life");
    assert!(!folio.cancel_reading(2));
    assert!(folio.put(Reference::Pin), "the last holder frees");
}

#[test]
fn a_failed_read_says_why() {
    let folio = Folio::new();
    folio.begin_reading(home(), 3, 2);
    folio.fail_read(StoreError::Io { offset: 3 * 4096, errno: 5 });
    assert_eq!(folio.read_error(3 * 4096), Some(StoreError::Io { offset: 3 * 4096, errno: 5 }));
    assert!(!folio.is_uptodate());
}

/// A kernel's array of folios is memory of zeros, or a constant.
#[test]
fn memory_of_zeros_is_a_folio_of_a_free_frame() {
    static MADE: [Folio; 2] = [const { Folio::new() }; 2];
    let zeros = core::mem::MaybeUninit::<[Folio; 2]>::zeroed();
    // SAFETY: a folio is atomic numbers and a pointer that may be null.
    let zeros: [Folio; 2] = unsafe { zeros.assume_init() };
    for folio in MADE.iter().chain(&zeros) {
        assert!(folio.is_free() && folio.mappings() == 0 && folio.mapped_home().is_none());
        folio.begin_anonymous(Home::NONE);
        assert!(folio.is_exclusive() && folio.put(Reference::Mapping));
    }
}

#[test]
fn a_page_that_has_left_its_file_and_is_reused_is_anonymous() {
    let folio = Folio::new();
    folio.begin_dirty(home(), 3, Reference::Mapping);
    assert!(!folio.try_reuse(), "the cache has it");
    assert!(!folio.put_cached());
    assert!(folio.try_reuse());
    assert!(folio.is_anonymous() && folio.is_exclusive());
    folio.set_home(crate::tables::Home::NONE);
}

/// A thread that looks for a page of a file may come to the frame in its next life (rule H1 of docs/home.md). If it counted a
/// mapping there, home would lead to a table that is freed: the only entry with the page leaves home as it is.
#[test]
fn a_look_up_in_a_file_counts_no_mapping_of_an_anonymous_page() {
    let folio = Folio::new();
    folio.begin_dirty(home(), 3, Reference::Pin);
    assert_eq!(folio.try_get(Reference::Mapping), Ok(()));
    assert!(!folio.put(Reference::Mapping) && !folio.put(Reference::Pin) && folio.put_cached());
    let record = crate::tables::LeafRecord::new();
    let (entry, family) = (Home::of_entry(&record, 5), Home::NONE);
    folio.begin_anonymous(entry);
    let counted = folio.try_get(Reference::Mapping);
    assert_eq!(folio.try_get(Reference::Pin), Ok(()), "which goes as it came");
    folio.leave_home(|| (entry, family));
    assert!(!folio.put(Reference::Mapping));
    assert_eq!(folio.mapped_home(), None, "rule H1: no entry maps the page, and home names a table");
    assert_eq!(counted, Err(Refused::Free));
    assert!(folio.put(Reference::Pin));
}

#[test]
fn a_page_that_a_fault_replaces_forgets_its_entry_even_if_it_is_the_only_one() {
    let (folio, record) = (Folio::new(), crate::tables::LeafRecord::new());
    let entry = Home::of_entry(&record, 5);
    folio.begin_anonymous(entry);
    folio.leave_home(|| (entry, Home::NONE));
    assert_eq!(folio.mapped_home(), Some(entry), "a call drops the mapping before its table goes");
    folio.leave_home_early(|| (entry, Home::NONE));
    assert_eq!(folio.mapped_home(), Some(Home::NONE), "rule H1: the table may be gone before the mapping");
    assert!(folio.put(Reference::Mapping));
}
