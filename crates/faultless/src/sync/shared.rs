//! A counted pointer whose creation can fail: like `alloc::sync::Arc`, but with `try_new`.

use super::atomic::fence;
use super::life::{OutOfMemory, try_box_uninit};
use super::modelled::Count;
use super::plain::{AtomicUsize, Ordering};
use super::section::Sections;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ops::Deref;
use core::ptr::NonNull;

/// The largest count of weak handles. A larger one means that handles were leaked, since each takes a word of memory; a clone
/// then panics.
const MOST: usize = usize::MAX / 2;
/// The largest count of strong handles; a clone or an upgrade beyond it panics. The bits from 2^32 on count other handles: see
/// [`Counted::strong`].
const MOST_STRONG: u64 = 1 << 31;
/// The unit by which a handle of a retired thing is counted.
const RETIRED: u64 = 1 << 32;

/// Returns whether all but one of the handles counted by `strong` belong to retired things, and there are such.
fn is_last_in_use(strong: u64) -> bool {
    strong / RETIRED != 0 && strong % RETIRED == strong / RETIRED + 1
}

/// A value and the counts of its handles. The counts are those of `core` under every back-end, as those of `Arc` are. A model
/// of the handles themselves asks for strong counts that loom sees (`LeftToRetired::IS_MODELLED`).
#[repr(C)]
pub struct Counted<T: ?Sized> {
    /// The number of [`Shared`]s; the value is dropped with the last. The upper bits count, in units of [`RETIRED`], those of
    /// them that belong to retired things.
    strong: Count,
    /// The number of [`Weak`]s, plus one for all [`Shared`]s together; the memory is freed with the last.
    weak: AtomicUsize,
    /// A function that is called with the value when only retired things have handles from then on. May be called more than
    /// once.
    left_to_retired: Option<unsafe fn(NonNull<()>)>,
    /// The sections to which the memory is charged.
    charged_to: Option<Arc<Sections>>,
    value: ManuallyDrop<T>,
}

/// Counts one more handle. Panics if there are too many, and leaves the count unchanged: a caller that survives the panic and
/// tries again does not make it pass zero.
#[inline]
fn count_one_more(count: &AtomicUsize) {
    if count.fetch_add(1, Ordering::Relaxed) >= MOST {
        count.fetch_sub(1, Ordering::Relaxed);
        panic!("handles were forgotten without end");
    }
}

/// Counts one more strong handle, as [`count_one_more`] does.
#[inline]
fn count_one_more_strong(count: &Count) {
    if count.fetch_add(1, Ordering::Relaxed) % RETIRED >= MOST_STRONG {
        count.fetch_sub(1, Ordering::Relaxed);
        panic!("handles were forgotten without end");
    }
}

/// A handle that keeps the value.
pub struct Shared<T: ?Sized> {
    counted: NonNull<Counted<T>>,
    owns: PhantomData<T>,
}

/// A handle that keeps the value's memory, and gives access to the value as long as a [`Shared`] keeps it.
pub struct Weak<T: ?Sized> {
    counted: NonNull<Counted<T>>,
}

// SAFETY: handles give out `&T`, and the last one drops the value, on any thread that has one.
unsafe impl<T: ?Sized + Send + Sync> Send for Shared<T> {}
// SAFETY: as above; a `&Shared` can be cloned.
unsafe impl<T: ?Sized + Send + Sync> Sync for Shared<T> {}
// SAFETY: as above, since it can become a `Shared`.
unsafe impl<T: ?Sized + Send + Sync> Send for Weak<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send + Sync> Sync for Weak<T> {}

impl<T> Shared<T> {
    /// Makes the first handle of `value`.
    ///
    /// # Errors
    /// [`OutOfMemory`]; `value` is dropped.
    pub fn try_new(value: T) -> Result<Self, OutOfMemory> {
        Self::try_new_cyclic(|_| value)
    }

    /// Makes the first handle of the value that `make` returns. `make` may keep the weak handle that it gets, which gives
    /// nothing before the value is there.
    ///
    /// # Errors
    /// [`OutOfMemory`]; `make` is not called.
    pub fn try_new_cyclic(make: impl FnOnce(&Weak<T>) -> T) -> Result<Self, OutOfMemory> {
        // SAFETY: the whole value is written.
        unsafe { Self::try_make(Count::new(0), None, None, |weak, place| place.write(make(weak))) }
    }

    /// Makes a handle as [`Shared::try_new`] does, and charges the memory as long as it exists.
    pub(crate) fn try_new_charged(sections: &Arc<Sections>, value: T) -> Result<Self, OutOfMemory> {
        Self::try_make_charged(sections, |_| value)
    }

    /// Makes a handle as [`Shared::try_new_cyclic`] does, and charges the memory as long as it exists.
    pub(crate) fn try_make_charged(
        sections: &Arc<Sections>,
        make: impl FnOnce(&Weak<T>) -> T,
    ) -> Result<Self, OutOfMemory> {
        // SAFETY: the whole value is written.
        unsafe { Self::try_make(Count::new(0), None, Some(sections), |weak, place| place.write(make(weak))) }
    }

    /// Makes a handle as [`Shared::try_new_cyclic`] does, and charges the memory. It is for a value of which retired things
    /// have handles ([`Shared::count_as_retired`]): when only those are left, [`LeftToRetired::left_to_retired`] is called.
    #[cfg(test)]
    pub(crate) fn try_new_retirable(
        sections: &Arc<Sections>,
        make: impl FnOnce(&Weak<T>) -> T,
    ) -> Result<Self, OutOfMemory>
    where
        T: LeftToRetired,
    {
        // SAFETY: the whole value is written.
        unsafe { Self::try_new_retirable_in_place(sections, |weak, place| place.write(make(weak))) }
    }

    /// Makes a handle as [`Shared::try_new_retirable`] does, of a value that is too large for the stack: `make` writes it in
    /// place.
    ///
    /// # Safety
    /// `make` writes the whole value.
    pub(crate) unsafe fn try_new_retirable_in_place(
        sections: &Arc<Sections>,
        make: impl FnOnce(&Weak<T>, *mut T),
    ) -> Result<Self, OutOfMemory>
    where
        T: LeftToRetired,
    {
        /// # Safety
        /// The value is there.
        unsafe fn tell<T: LeftToRetired>(value: NonNull<()>) {
            // SAFETY: by the contract above.
            unsafe { value.cast::<T>().as_ref() }.left_to_retired();
        }
        let strong = super::modelled::count(T::IS_MODELLED);
        // SAFETY: by the contract above.
        unsafe { Self::try_make(strong, Some(tell::<T>), Some(sections), make) }
    }

    /// # Safety
    /// `make` writes the whole value.
    unsafe fn try_make(
        strong: Count,
        left_to_retired: Option<unsafe fn(NonNull<()>)>,
        charged_to: Option<&Arc<Sections>>,
        make: impl FnOnce(&Weak<T>, *mut T),
    ) -> Result<Self, OutOfMemory> {
        let memory: Box<MaybeUninit<Counted<T>>> = try_box_uninit()?;
        let counted = NonNull::from(Box::leak(memory)).cast::<Counted<T>>();
        let place = counted.as_ptr();
        // SAFETY: the memory is our own and has the right layout; the counts are written before they are read.
        unsafe {
            (&raw mut (*place).strong).write(strong);
            (&raw mut (*place).weak).write(AtomicUsize::new(1));
            (&raw mut (*place).left_to_retired).write(left_to_retired);
            (&raw mut (*place).charged_to).write(charged_to.cloned());
        }
        if let Some(sections) = charged_to {
            sections.charge(size_of::<Counted<T>>());
        }
        // The weak handle of all strong ones. If `make` panics, the memory is lost.
        let weak = ManuallyDrop::new(Weak { counted });
        // No thread reads the value while there are no strong handles.
        // SAFETY: the memory is there. A value of this type lies in its `ManuallyDrop` as it would alone.
        make(&weak, unsafe { &raw mut (*place).value }.cast::<T>());
        // Release, partner: the Acquire of `Weak::upgrade`.
        weak.counts().0.store(1, Ordering::Release);
        Ok(Self { counted, owns: PhantomData })
    }

    /// Counts this handle as one of a retired thing. Returns true if all handles are such.
    pub(crate) fn count_as_retired(&self) -> bool {
        // Release, partner: the Acquire of a thread that drops a handle and finds this one counted.
        // SAFETY: as in `deref`.
        let strong =
            unsafe { &(*self.counted.as_ptr()).strong }.fetch_add(RETIRED, Ordering::AcqRel) + RETIRED;
        strong % RETIRED == strong / RETIRED
    }

    /// Undoes [`Shared::count_as_retired`]. The thing that has the handle is freed next.
    pub(crate) fn count_as_freed(&self) {
        // SAFETY: as in `deref`.
        unsafe { &(*self.counted.as_ptr()).strong }.fetch_sub(RETIRED, Ordering::Relaxed);
    }
}

/// A value of which retired things have handles.
pub(crate) trait LeftToRetired {
    /// Tells whether loom sees the count of strong handles. If true, each step on the count is a step of the model.
    const IS_MODELLED: bool = false;
    /// Tells the value that only retired things have handles from now on. The thread that drops the last other handle calls it,
    /// in any context.
    fn left_to_retired(&self);
}

impl<T: ?Sized> Shared<T> {
    /// Returns whether both are handles of one value.
    pub fn ptr_eq(a: &Self, b: &Self) -> bool {
        core::ptr::addr_eq(a.counted.as_ptr(), b.counted.as_ptr())
    }

    /// Makes a weak handle.
    pub fn downgrade(this: &Self) -> Weak<T> {
        ManuallyDrop::new(Weak { counted: this.counted }).deref().clone()
    }
}

impl<T: ?Sized> Deref for Shared<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the value lives as long as a strong handle does.
        unsafe { &(*self.counted.as_ptr()).value }
    }
}

impl<T: ?Sized> Clone for Shared<T> {
    #[inline]
    fn clone(&self) -> Self {
        // Relaxed: a handle is passed to another thread by an operation that orders it.
        // SAFETY: as in `deref`.
        count_one_more_strong(unsafe { &(*self.counted.as_ptr()).strong });
        Self { counted: self.counted, owns: PhantomData }
    }
}

impl<T: ?Sized> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: as in `deref`.
        let (strong, tell) =
            unsafe { (&(*self.counted.as_ptr()).strong, (*self.counted.as_ptr()).left_to_retired) };
        let mut seen = strong.load(Ordering::Acquire);
        loop {
            if is_last_in_use(seen)
                && let Some(tell) = tell
            {
                // SAFETY: this handle still keeps the value.
                unsafe { tell(NonNull::from(&**self).cast()) };
            }
            if mutant!("hurry_forgets_retired") {
                seen = strong.fetch_sub(1, Ordering::Release);
                break;
            }
            // Release, partner: the fence of the thread that drops the last one. It is one step, so that of several threads
            // that drop theirs at once, one finds that it is the last in use.
            match strong.compare_exchange_weak(seen, seen - 1, Ordering::Release, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        if seen != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // ThreadSanitizer does not know the fence.
        #[cfg(tsan)]
        strong.load(Ordering::Acquire);
        // The weak handle of all strong ones, which is dropped even if the value's drop panics.
        let _weak = Weak { counted: self.counted };
        // SAFETY: no strong handle is left, and none comes from a weak one any more.
        unsafe { ManuallyDrop::drop(&mut (*self.counted.as_ptr()).value) };
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized> Weak<T> {
    fn counts(&self) -> (&Count, &AtomicUsize) {
        // SAFETY: the memory lives as long as a weak handle does, and the counts were written first. The value, which may
        // be gone, is not borrowed.
        unsafe { (&(*self.counted.as_ptr()).strong, &(*self.counted.as_ptr()).weak) }
    }

    /// Returns a handle that keeps the value, if the value still exists.
    pub fn upgrade(&self) -> Option<Shared<T>> {
        let more = |strong: u64| {
            assert!(strong % RETIRED < MOST_STRONG, "handles were forgotten without end");
            (strong != 0).then_some(strong + 1)
        };
        // Acquire, partner: the Release of `Shared::try_new_cyclic`.
        self.counts().0.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        Some(Shared { counted: self.counted, owns: PhantomData })
    }

    /// Returns the number of handles that keep the value. It may be out of date when it is returned.
    pub fn strong_count(&self) -> usize {
        (self.counts().0.load(Ordering::Relaxed) % RETIRED) as usize
    }

    /// Returns the address of the counts, for [`Weak::upgrade_raw`].
    pub(crate) fn as_raw(&self) -> NonNull<()> {
        self.counted.cast()
    }

    /// Turns the handle into one of a value of another type, such as a trait object.
    ///
    /// # Safety
    /// `unsize` returns the pointer that it gets.
    pub(crate) unsafe fn unsize<U: ?Sized>(
        self,
        unsize: impl FnOnce(NonNull<Counted<T>>) -> NonNull<Counted<U>>,
    ) -> Weak<U> {
        let this = ManuallyDrop::new(self);
        Weak { counted: unsize(this.counted) }
    }
}

impl<T> Weak<T> {
    /// Returns the address of the value, which may not be there yet, or no longer. It has the provenance of the whole memory.
    pub(crate) fn place(&self) -> NonNull<T> {
        // SAFETY: the memory lives as long as a weak handle does; nothing is read. A value of this type lies in its `ManuallyDrop`
        // as it would alone.
        unsafe { NonNull::new_unchecked((&raw mut (*self.counted.as_ptr()).value).cast()) }
    }

    /// Upgrades a handle as [`Weak::upgrade`] does, by the address that [`Weak::as_raw`] returned. The value is not borrowed:
    /// it may be being dropped.
    ///
    /// # Safety
    /// `raw` came from a weak handle of a `T`, and some handle of that value, strong or weak, exists during the call.
    pub(crate) unsafe fn upgrade_raw(raw: NonNull<()>) -> Option<Shared<T>> {
        // The handle is not dropped: none is given up here.
        ManuallyDrop::new(Self { counted: raw.cast() }).upgrade()
    }
}

impl<T: ?Sized> Clone for Weak<T> {
    fn clone(&self) -> Self {
        count_one_more(self.counts().1);
        Self { counted: self.counted }
    }
}

impl<T: ?Sized> Drop for Weak<T> {
    fn drop(&mut self) {
        // Release, partner: the fence of the thread that drops the last one.
        if self.counts().1.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        #[cfg(tsan)]
        self.counts().1.load(Ordering::Acquire);
        // SAFETY: the last handle. The memory came from a Box, so it has this layout and a size; the value in it has been
        // dropped, and is not dropped again by this type.
        unsafe {
            let layout = Layout::for_value(&*self.counted.as_ptr());
            if let Some(sections) = (*self.counted.as_ptr()).charged_to.take() {
                sections.uncharge(layout.size());
            }
            alloc::alloc::dealloc(self.counted.as_ptr().cast(), layout);
        }
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A value that counts its drops.
    struct Dropped(Arc<AtomicUsize>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    trait Count: Send + Sync {
        fn count(&self) -> usize;
    }

    impl Count for Dropped {
        fn count(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn the_value_goes_with_the_last_strong_handle() {
        let drops = Arc::new(AtomicUsize::new(0));
        let first = Shared::try_new(Dropped(drops.clone())).unwrap();
        let second = first.clone();
        assert!(Shared::ptr_eq(&first, &second));
        let weak = Shared::downgrade(&first);
        drop(first);
        assert_eq!((second.count(), weak.strong_count()), (0, 1));
        assert!(weak.upgrade().is_some_and(|third| Shared::ptr_eq(&second, &third)));
        drop(second);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        assert!(weak.clone().upgrade().is_none());
    }

    #[test]
    fn a_weak_handle_gives_nothing_before_the_value_is_there() {
        let (mut early, mut kept) = (None, None);
        let drops = Arc::new(AtomicUsize::new(0));
        let shared = Shared::try_new_cyclic(|weak| {
            (early, kept) = (Some(weak.upgrade().is_none()), Some(weak.clone()));
            Dropped(drops.clone())
        });
        assert_eq!(early, Some(true));
        let kept = kept.unwrap();
        assert!(kept.upgrade().is_some());
        drop(shared);
        assert!(kept.upgrade().is_none());
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_weak_handle_forgets_the_type() {
        let drops = Arc::new(AtomicUsize::new(0));
        let shared = Shared::try_new(Dropped(drops.clone())).unwrap();
        // SAFETY: the pointer that comes in.
        let weak: Weak<dyn Count> =
            unsafe { Shared::downgrade(&shared).unsize(|counted| counted as NonNull<Counted<dyn Count>>) };
        assert_eq!(weak.upgrade().map(|counted| counted.count()), Some(0));
        let last = weak.upgrade();
        drop(shared);
        assert_eq!(drops.load(Ordering::Relaxed), 0);
        drop(last);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        assert!(weak.upgrade().is_none());
    }

    #[test]
    fn handles_that_are_forgotten_without_end_do_not_overflow_the_count() {
        let shared = Shared::try_new(Dropped(Arc::default())).unwrap();
        let weak = Shared::downgrade(&shared);
        // SAFETY: the counts live as long as `shared`; they are put back below.
        let (strong, of_weak) =
            unsafe { (&(*shared.counted.as_ptr()).strong, &(*shared.counted.as_ptr()).weak) };
        let real = (strong.swap(MOST_STRONG, Ordering::Relaxed), of_weak.swap(MOST, Ordering::Relaxed));
        let panics: [&dyn Fn(); 3] =
            [&|| std::mem::forget(shared.clone()), &|| std::mem::forget(weak.clone()), &|| {
                std::mem::forget(weak.upgrade())
            }];
        for forget in panics {
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(forget)).is_err());
        }
        let after = (strong.swap(real.0, Ordering::Relaxed), of_weak.swap(real.1, Ordering::Relaxed));
        assert_eq!(after, (MOST_STRONG, MOST));
    }

    #[test]
    fn handles_on_many_threads() {
        let drops = Arc::new(AtomicUsize::new(0));
        let shared = Shared::try_new(Dropped(drops.clone())).unwrap();
        let weak = Shared::downgrade(&shared);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (mine, weak) = (shared.clone(), weak.clone());
                scope.spawn(move || {
                    for _ in 0..1000 {
                        let again = weak.upgrade().expect("kept by this thread");
                        assert_eq!(again.clone().count(), 0);
                    }
                    drop(mine);
                });
            }
            drop(shared);
        });
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        assert_eq!(weak.strong_count(), 0);
    }
}
