//! What came of a change of a folio's word.

/// Why there is no further reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The frame is free.
    Free,
    /// As many as the count can hold.
    Full,
}

/// The references that remain after one has been dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remaining {
    /// No reference: the caller frees the frame.
    Nothing,
    /// The page cache's reference alone: the caller puts the folio on the list of idle folios.
    Idle,
    /// Other references, or the list has it.
    Others,
}

/// The outcome of eviction for a folio of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// The caller has the frame alone. The list's reference and the page cache's are gone.
    Taken,
    /// It was used since the last look, and is given another round.
    Used,
    /// It is in no use, and has to be written first.
    Dirty,
    /// Somebody uses it.
    InUse,
}

/// fork's answer for one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// One more mapping, exclusive no longer.
    Shared,
    /// Somebody does I/O into the page through this mapping: the child gets a copy instead.
    Pinned,
    /// As many mappings as the count can hold.
    Full,
}
