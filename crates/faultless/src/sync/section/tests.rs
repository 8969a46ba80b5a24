use super::*;

/// A kernel's threads have 16 KiB. Here the test's own frames take a part, and the thread's locals.
#[test]
fn a_first_section_in_a_chunk_needs_little_stack() {
    let sections = Sections::new();
    std::thread::scope(|scope| {
        let first_use = || sections.counters(SlotIndex::new(5 * CHUNK_SLOTS as u32).unwrap());
        let thread = std::thread::Builder::new().stack_size(32 << 10).spawn_scoped(scope, first_use);
        thread.unwrap().join().unwrap();
    });
    assert_eq!(sections.find_slot(0, |_, _| true), Some(5 * CHUNK_SLOTS));
}
