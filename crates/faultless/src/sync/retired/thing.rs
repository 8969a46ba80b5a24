//! Things that were unhooked, and lists of them. A thing that is dropped is leaked; debug builds panic then.

use super::super::OutOfMemory;
use alloc::boxed::Box;
use core::marker::PhantomData;
use core::mem;
use core::ptr::NonNull;
use smallvec::SmallVec;

/// The way in which things of one type are freed, and the memory that they keep.
pub struct RetiredKind {
    /// A function that frees the thing. Called once, by any thread, after a grace period.
    pub free: unsafe fn(NonNull<()>),
    /// The bytes that the thing takes. The sum over all threads' things is kept under a limit.
    pub bytes: usize,
    /// Tells whether the bytes were charged ([`Sections::charge`](crate::sync::Sections::charge)). If so, they are uncharged
    /// when the thing is freed.
    pub is_charged: bool,
    /// A function that is called once when the thing has been retired, before `free`, by any thread. It returns true if the
    /// object that the thing keeps is kept by nothing else that is not retired, and should end soon.
    pub retired: Option<unsafe fn(NonNull<()>) -> bool>,
}

/// A thing that readers may still reach: it is unhooked, and to be freed after a grace period. It is retired
/// ([`Sections::retire`](crate::sync::Sections::retire)), freed, or leaked by name. If it is dropped, it leaks too, and builds
/// with debug assertions panic (only with the feature `std`, which knows whether the thread panics already).
#[must_use = "dropping it leaks the thing"]
pub struct Retired {
    pointer: NonNull<()>,
    kind: &'static RetiredKind,
}

// SAFETY: `Retired::new` takes only things that may be sent; `from_raw` only things that any thread may free.
unsafe impl Send for Retired {}

struct Boxed<T>(PhantomData<T>);

impl<T> Boxed<T> {
    const KIND: RetiredKind =
        RetiredKind { free: Self::free, bytes: size_of::<T>(), is_charged: false, retired: None };

    /// # Safety
    /// `pointer` came from `Box::<T>::into_raw` and is passed once.
    unsafe fn free(pointer: NonNull<()>) {
        // SAFETY: by the contract above.
        drop(unsafe { Box::from_raw(pointer.cast::<T>().as_ptr()) });
    }
}

impl Retired {
    /// Makes a retired thing of `thing`, which no new reader can find any more.
    pub fn new<T: Send + 'static>(thing: Box<T>) -> Self {
        // A Box is never null.
        let pointer = NonNull::from(Box::leak(thing)).cast();
        Self { pointer, kind: &Boxed::<T>::KIND }
    }

    /// Makes a retired thing of the object at `pointer`, which no new reader can find any more, and which is of this kind.
    ///
    /// # Safety
    /// The functions of `kind` may be called with `pointer` as [`RetiredKind`] states.
    pub unsafe fn from_raw(pointer: NonNull<()>, kind: &'static RetiredKind) -> Self {
        Self { pointer, kind }
    }

    /// Leaks the thing.
    pub fn leak(self) {
        mem::forget(self);
    }

    /// Frees the thing.
    ///
    /// # Safety
    /// A grace period has passed since the thing was unhooked.
    pub unsafe fn free(self) {
        let _ = self.tell();
        // SAFETY: by the contract above.
        unsafe { self.free_told() };
    }

    /// Tells the thing that it is retired. Called once.
    pub(super) fn tell(&self) -> bool {
        // SAFETY: the maker of the thing stated that this may be called, and the thing still exists.
        self.kind.retired.is_some_and(|retired| unsafe { retired(self.pointer) })
    }

    /// # Safety
    /// The caller guarantees the same as for [`Retired::free`], and has called [`Retired::tell`].
    pub(super) unsafe fn free_told(self) {
        let Self { pointer, kind } = *mem::ManuallyDrop::new(self);
        // SAFETY: by the contract above, and consumed here.
        unsafe { (kind.free)(pointer) }
    }

    /// Returns the bytes that were charged for the thing.
    pub(crate) fn charged(&self) -> usize {
        if self.kind.is_charged { self.kind.bytes } else { 0 }
    }

    /// Returns the bytes that the thing takes, with its place in a list.
    pub(super) fn bytes(&self) -> usize {
        self.kind.bytes + size_of::<(u64, Self)>()
    }
}

const _: () = assert!(size_of::<Retired>() == 16);

#[cfg(all(debug_assertions, feature = "std"))]
impl Drop for Retired {
    fn drop(&mut self) {
        // A thing that a panic leaves behind is leaked: a thread may still reach it.
        assert!(
            std::thread::panicking(),
            "a thing of {} bytes was unhooked and is leaked: it was not retired",
            self.kind.bytes
        );
    }
}

/// A list of the things that a call has unhooked. The few things of most calls need no memory from the allocator. Things that
/// are in it when it is dropped are leaked, as [`Retired`] states.
#[derive(Default)]
#[must_use = "dropping it leaks its things"]
pub struct RetiredList(SmallVec<[Retired; 6]>);

impl RetiredList {
    /// Makes an empty list.
    #[inline]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of things in the list.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the list is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes room for `more` things.
    ///
    /// # Errors
    /// [`OutOfMemory`]: there is no such room.
    #[inline]
    pub fn try_reserve(&mut self, more: usize) -> Result<(), OutOfMemory> {
        self.0.try_reserve(more).map_err(|_| OutOfMemory)
    }

    /// Adds `thing`, for which there is room.
    #[inline]
    pub fn push(&mut self, thing: Retired) {
        self.0.push(thing);
    }

    /// Returns the things, which stay in the list. For a mutant.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Retired> {
        self.0.iter()
    }

    /// Takes all things out of the list, which keeps its room.
    #[inline]
    pub fn drain(&mut self) -> impl ExactSizeIterator<Item = Retired> {
        self.0.drain(..)
    }
}

impl Extend<Retired> for RetiredList {
    #[inline]
    fn extend<I: IntoIterator<Item = Retired>>(&mut self, things: I) {
        things.into_iter().for_each(|thing| self.push(thing));
    }
}

impl FromIterator<Retired> for RetiredList {
    #[inline]
    fn from_iter<I: IntoIterator<Item = Retired>>(things: I) -> Self {
        Self(things.into_iter().collect())
    }
}

impl IntoIterator for RetiredList {
    type Item = Retired;
    type IntoIter = smallvec::IntoIter<[Retired; 6]>;

    #[inline]
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
