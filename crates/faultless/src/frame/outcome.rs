//! The outcomes of changes of a folio's word.

/// The reason why no further reference was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The frame is free, or has an anonymous page, which is none of the file's.
    Free,
    /// The count has reached its maximum.
    Full,
}

/// The references that remain after one has been dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remaining {
    /// No reference remains: the caller frees the frame.
    Nothing,
    /// Only the swap cache's reference remains, of an anonymous folio: the caller looks whether an entry still names its slot
    /// (`Engine::see_to_cached`).
    InSlot,
    /// Other references remain, or that of a file.
    Others,
}

/// The outcome of fork for one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// The page has one more mapping, and is no longer exclusive.
    Shared,
    /// I/O into the page is under way through this mapping: the child gets a copy instead.
    Pinned,
    /// The count of mappings has reached its maximum.
    Full,
}
