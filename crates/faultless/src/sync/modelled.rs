//! Counts of handles that only some models see. In the others, each step on one would be a step of the model, and there are
//! many.

#[cfg(not(loom))]
pub(super) use super::plain::AtomicU64 as Count;

/// Makes a count. Under loom, `is_modelled` tells whether loom sees it.
#[cfg(not(loom))]
#[inline]
pub(super) fn count(_is_modelled: bool) -> Count {
    Count::new(0)
}

#[cfg(loom)]
pub(super) use of_loom::{Count, count};

#[cfg(loom)]
mod of_loom {
    use crate::sync::{atomic, plain};
    use core::sync::atomic::Ordering;

    pub enum Count {
        Plain(plain::AtomicU64),
        Modelled(atomic::AtomicU64),
    }

    pub fn count(is_modelled: bool) -> Count {
        if is_modelled { Count::Modelled(atomic::AtomicU64::new(0)) } else { Count::new(0) }
    }

    impl Count {
        pub fn new(value: u64) -> Self {
            Self::Plain(plain::AtomicU64::new(value))
        }
    }

    macro_rules! forward {
        ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
            impl Count {
                $(pub fn $name(&self, $($argument: $type),*) -> $result {
                    match self {
                        Self::Plain(count) => count.$name($($argument),*),
                        Self::Modelled(count) => count.$name($($argument),*),
                    }
                })*
            }
        };
    }

    forward! {
        load(order: Ordering) -> u64;
        store(value: u64, order: Ordering) -> ();
        fetch_add(more: u64, order: Ordering) -> u64;
        fetch_sub(less: u64, order: Ordering) -> u64;
        compare_exchange_weak(seen: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64>;
        fetch_update(set: Ordering, fetch: Ordering, f: impl FnMut(u64) -> Option<u64>) -> Result<u64, u64>;
    }
}
