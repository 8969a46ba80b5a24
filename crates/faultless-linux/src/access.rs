//! Loads and stores of real memory that come back with the signal instead of dying of it.
