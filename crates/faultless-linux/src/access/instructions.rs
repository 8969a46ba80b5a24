//! The instructions that a signal may interrupt. Each is in the body of a function without a stack frame, so a `ret` at
//! any point returns to its caller.

use std::arch::naked_asm;

/// The result of an access, in the two registers in which C returns a structure of two words.
#[repr(C)]
pub struct Outcome {
    /// The loaded or old value, or zero. If a signal was received, its address.
    pub value: u64,
    /// Zero, or the signal: the number in the upper half, the code in the lower.
    pub signal: u64,
}

/// Defines functions whose first instruction is the access. They have no prologue and no landing pad: calls are direct.
macro_rules! access {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),*) { $($line:literal),* $(,)? })*) => { $(
        $(#[$doc])*
        ///
        /// # Safety
        /// No Rust object owns the bytes that it accesses, and `signals` is installed.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> Outcome {
            naked_asm!(".cfi_startproc", $($line,)* "ret", ".cfi_endproc")
        }
    )* };
}

#[cfg(target_arch = "x86_64")]
access! {
    /// Loads a word.
    fn load_u64(at: *const u64) { "mov rax, [rdi]", "xor edx, edx" }
    /// Stores a word.
    fn store_u64(at: *mut u64, value: u64) { "mov [rdi], rsi", "xor eax, eax", "xor edx, edx" }
    /// Adds to a word.
    fn fetch_add_u64(at: *mut u64, value: u64) { "lock xadd [rdi], rsi", "mov rax, rsi", "xor edx, edx" }
    /// Loads a byte.
    fn load_u8(at: *const u8) { "movzx eax, byte ptr [rdi]", "xor edx, edx" }
    /// Stores a byte.
    fn store_u8(at: *mut u8, value: u8) { "mov byte ptr [rdi], sil", "xor eax, eax", "xor edx, edx" }
}

#[cfg(target_arch = "aarch64")]
access! {
    /// Loads a word.
    fn load_u64(at: *const u64) { "ldar x0, [x0]", "mov x1, #0" }
    /// Stores a word.
    fn store_u64(at: *mut u64, value: u64) { "stlr x1, [x0]", "mov x0, #0", "mov x1, #0" }
    /// Adds to a word. In read-only memory the store receives the signal.
    fn fetch_add_u64(at: *mut u64, value: u64) {
        "2: ldaxr x2, [x0]", "add x3, x2, x1", "stlxr w4, x3, [x0]", "cbnz w4, 2b", "mov x0, x2", "mov x1, #0"
    }
    /// Loads a byte.
    fn load_u8(at: *const u8) { "ldarb w0, [x0]", "mov x1, #0" }
    /// Stores a byte.
    fn store_u8(at: *mut u8, value: u8) { "stlrb w1, [x0]", "mov x0, #0", "mov x1, #0" }
}

/// Ends an interrupted access: returns to its caller with the values in the registers.
#[unsafe(naked)]
pub extern "C" fn leave() {
    naked_asm!(".cfi_startproc", "ret", ".cfi_endproc")
}

/// The offset in bytes of the last access of `fetch_add_u64`: on arm64 its third instruction.
const LAST_OF_ADD: usize = if cfg!(target_arch = "aarch64") { 8 } else { 0 };

/// Returns whether the instruction at this program counter is an access.
pub fn is_access(counter: usize) -> bool {
    let places = [
        load_u64 as *const (),
        store_u64 as *const (),
        fetch_add_u64 as *const (),
        (fetch_add_u64 as *const ()).wrapping_byte_add(LAST_OF_ADD),
        load_u8 as *const (),
        store_u8 as *const (),
    ];
    places.iter().any(|place| place.addr() == counter)
}
