//! Planted bugs: the tests and models have to find each of them (see `CONTRIBUTING.md`, "Mutants").
//!
//! A build with `FAULTLESS_MUTANTS=1` in the environment has all of them, and plants the one that `FAULTLESS_MUTANT` names
//! when it runs. In every other build they are dead code.

/// Returns whether a mutant with one of these names is planted. This is the constant `false`, except in a build for mutants.
#[cfg(not(mutants))]
#[doc(hidden)]
#[macro_export]
macro_rules! mutant {
    ($($name:literal)|+) => {
        false
    };
}

/// Returns whether a mutant with one of these names is planted.
#[cfg(mutants)]
#[doc(hidden)]
#[macro_export]
macro_rules! mutant {
    ($($name:literal)|+) => {
        $($crate::is_planted($name))||+
    };
}

/// Returns whether the environment variable `FAULTLESS_MUTANT` has this value. It is read once.
#[cfg(mutants)]
pub fn is_planted(name: &str) -> bool {
    static PLANTED: std::sync::OnceLock<Option<std::ffi::OsString>> = std::sync::OnceLock::new();
    PLANTED.get_or_init(|| std::env::var_os("FAULTLESS_MUTANT")).as_deref() == Some(name.as_ref())
}

#[cfg(all(mutants, not(debug_assertions)))]
compile_error!("a mutant is a planted bug: it is built with debug assertions only, never in a release");
