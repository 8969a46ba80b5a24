//! A counted pointer whose making can fail: what `alloc::sync::Arc` is, but for `try_new`.

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

/// More than there can be of weak handles: each takes a word somewhere.
const MOST: usize = usize::MAX / 2;
/// More than there can be of strong handles: at 2^32 others are counted, see [`Counted::strong`].
const MOST_STRONG: u64 = 1 << 31;
/// A handle that something retired has.
const RETIRED: u64 = 1 << 32;

/// Whether, of handles that are counted by `strong`, all but one are retired things'; and there are some.
fn is_last_in_use(strong: u64) -> bool {
    strong / RETIRED != 0 && strong % RETIRED == strong / RETIRED + 1
}

/// A value and its handles. The counts are of `core` under every back-end, as those of `Arc` are; a model that is about the
/// handles themselves asks for strong ones that loom sees (`LeftToRetired::IS_MODELLED`).
#[repr(C)]
pub struct Counted<T: ?Sized> {
    /// [`Shared`]s; the value is dropped with the last. Above, in units of [`RETIRED`], those of them that retired things
    /// have.
    strong: Count,
    /// [`Weak`]s, and one for all [`Shared`]s together; the memory is freed with the last.
    weak: AtomicUsize,
    /// Of the value, when from now on only retired things have handles. May be called more than once.
    left_to_retired: Option<unsafe fn(NonNull<()>)>,
    /// What the memory is charged to.
    charged_to: Option<Arc<Sections>>,
    value: ManuallyDrop<T>,
}

/// One handle more. Where there are too many, the count is as before: a caller that survives the panic and tries again does
/// not get it to pass zero.
#[inline]
fn count_one_more(count: &AtomicUsize) {
    if count.fetch_add(1, Ordering::Relaxed) >= MOST {
        count.fetch_sub(1, Ordering::Relaxed);
        panic!("handles were forgotten without end");
    }
}

/// The same for strong handles.
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

/// A handle that keeps the value's memory, and gives the value as long as somebody keeps it.
pub struct Weak<T: ?Sized> {
    counted: NonNull<Counted<T>>,
}

// SAFETY: handles give out `&T`, and the last drops the value, on any thread that has one.
unsafe impl<T: ?Sized + Send + Sync> Send for Shared<T> {}
// SAFETY: as above; a `&Shared` can be cloned.
unsafe impl<T: ?Sized + Send + Sync> Sync for Shared<T> {}
// SAFETY: as above, since it can become a `Shared`.
unsafe impl<T: ?Sized + Send + Sync> Send for Weak<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send + Sync> Sync for Weak<T> {}

impl<T> Shared<T> {
    /// The first handle of `value`.
    ///
    /// # Errors
    /// [`OutOfMemory`]; `value` is dropped.
    pub fn try_new(value: T) -> Result<Self, OutOfMemory> {
        Self::try_new_cyclic(|_| value)
    }

    /// The first handle of what `make` makes, which may keep the weak handle that it gets: it gives nothing before the value
    /// is there.
    ///
    /// # Errors
    /// [`OutOfMemory`]; `make` is not called.
    pub fn try_new_cyclic(make: impl FnOnce(&Weak<T>) -> T) -> Result<Self, OutOfMemory> {
        // SAFETY: the whole value is written.
        unsafe { Self::try_make(Count::new(0), None, None, |weak, place| place.write(make(weak))) }
    }

    /// As [`Shared::try_new`], charged as long as the memory is there.
    pub(crate) fn try_new_charged(sections: &Arc<Sections>, value: T) -> Result<Self, OutOfMemory> {
        Self::try_make_charged(sections, |_| value)
    }

    /// As [`Shared::try_new_cyclic`], charged as long as the memory is there.
    pub(crate) fn try_make_charged(
        sections: &Arc<Sections>,
        make: impl FnOnce(&Weak<T>) -> T,
    ) -> Result<Self, OutOfMemory> {
        // SAFETY: the whole value is written.
        unsafe { Self::try_make(Count::new(0), None, Some(sections), |weak, place| place.write(make(weak))) }
    }

    /// As [`Shared::try_new_cyclic`], charged, for a value that retired things have handles of ([`Shared::count_as_retired`]): when
    /// only those are left, [`LeftToRetired::left_to_retired`] is called.
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

    /// As [`Shared::try_new_retirable`], of a value that is too large for the stack: `make` writes it where it is to be.
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
        // SAFETY: memory of our own, of the right layout; the counts are written before anybody reads them.
        unsafe {
            (&raw mut (*place).strong).write(strong);
            (&raw mut (*place).weak).write(AtomicUsize::new(1));
            (&raw mut (*place).left_to_retired).write(left_to_retired);
            (&raw mut (*place).charged_to).write(charged_to.cloned());
        }
        if let Some(sections) = charged_to {
            sections.charge(size_of::<Counted<T>>());
        }
        // The strong handles' weak one. If `make` panics, the memory is lost.
        let weak = ManuallyDrop::new(Weak { counted });
        // Nobody reads the value while there are no strong handles.
        // SAFETY: the memory is there. A value of this type lies in its `ManuallyDrop` as it would alone.
        make(&weak, unsafe { &raw mut (*place).value }.cast::<T>());
        // Release, partner: the Acquire of `Weak::upgrade`.
        weak.counts().0.store(1, Ordering::Release);
        Ok(Self { counted, owns: PhantomData })
    }

    /// Counts this handle as one that something retired has. True: all are.
    pub(crate) fn count_as_retired(&self) -> bool {
        // Release, partner: the Acquire of who drops a handle and finds it counted.
        // SAFETY: as in `deref`.
        let strong =
            unsafe { &(*self.counted.as_ptr()).strong }.fetch_add(RETIRED, Ordering::AcqRel) + RETIRED;
        strong % RETIRED == strong / RETIRED
    }

    /// Takes [`Shared::count_as_retired`] back: what has the handle is freed next.
    pub(crate) fn count_as_freed(&self) {
        // SAFETY: as in `deref`.
        unsafe { &(*self.counted.as_ptr()).strong }.fetch_sub(RETIRED, Ordering::Relaxed);
    }
}

/// A value that retired things have handles of.
pub(crate) trait LeftToRetired {
    /// Whether loom sees the count of strong handles: each step on one is then a step of the model.
    const IS_MODELLED: bool = false;
    /// From now on nobody else has any. Called by whoever drops the last one, anywhere.
    fn left_to_retired(&self);
}

impl<T: ?Sized> Shared<T> {
    /// Whether both are handles of one value.
    pub fn ptr_eq(a: &Self, b: &Self) -> bool {
        core::ptr::addr_eq(a.counted.as_ptr(), b.counted.as_ptr())
    }

    /// A weak handle.
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
        // Relaxed: who has a handle gives one to another thread by something that orders it.
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
                // SAFETY: this handle keeps the value still.
                unsafe { tell(NonNull::from(&**self).cast()) };
            }
            // Release, partner: the fence of whoever drops the last one. One step, so that of several who drop theirs at once
            // one finds that it is the last in use.
            #[cfg(not(mutant = "hurry_forgets_retired"))]
            match strong.compare_exchange_weak(seen, seen - 1, Ordering::Release, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
            #[cfg(mutant = "hurry_forgets_retired")]
            {
                seen = strong.fetch_sub(1, Ordering::Release);
                break;
            }
        }
        if seen != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // The strong handles' weak one, dropped also if the value's drop panics.
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

    /// A handle that keeps the value, if it is there still.
    pub fn upgrade(&self) -> Option<Shared<T>> {
        let more = |strong: u64| {
            assert!(strong % RETIRED < MOST_STRONG, "handles were forgotten without end");
            (strong != 0).then_some(strong + 1)
        };
        // Acquire, partner: the Release of `Shared::try_new_cyclic`.
        self.counts().0.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        Some(Shared { counted: self.counted, owns: PhantomData })
    }

    /// How many keep the value; it may have changed when one knows.
    pub fn strong_count(&self) -> usize {
        (self.counts().0.load(Ordering::Relaxed) % RETIRED) as usize
    }

    /// Where the counts are, for [`Weak::upgrade_raw`].
    pub(crate) fn as_raw(&self) -> NonNull<()> {
        self.counted.cast()
    }

    /// The same handle to a value whose type is not known any more.
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
    /// As [`Weak::upgrade`], by what [`Weak::as_raw`] returned. The value is not borrowed: it may be being dropped.
    ///
    /// # Safety
    /// `raw` came from a weak handle of a `T`, and some handle of that value, strong or weak, is there during the call.
    pub(crate) unsafe fn upgrade_raw(raw: NonNull<()>) -> Option<Shared<T>> {
        // Not dropped: no handle is given up here.
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
        // Release, partner: the fence of whoever drops the last one.
        if self.counts().1.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
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

    /// Counts its drops.
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
