//! The handler of SIGSEGV and SIGBUS. It turns the signal of an access into a result, and passes on all other signals.
//!
//! The code that runs in it is async-signal-safe: no lock, no allocation, no thread-local state.

use super::Signal;
use super::instructions::{self, Outcome};
use libc::{c_int, c_void, mcontext_t, sigaction, siginfo_t, sigset_t};
use std::mem::{MaybeUninit, transmute};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

/// The action of a signal before ours. `take` writes it once; the handler only reads it, which takes no lock.
struct Previous {
    /// The action just before ours replaced it.
    seen: OnceLock<sigaction>,
    /// The action that ours replaced.
    replaced: OnceLock<sigaction>,
    /// Whether a handler for one call (SA_RESETHAND) was called already. Atomic.
    spent: AtomicBool,
}

impl Previous {
    const fn unknown() -> Self {
        Self { seen: OnceLock::new(), replaced: OnceLock::new(), spent: AtomicBool::new(false) }
    }
}

static SEGV: Previous = Previous::unknown();
static BUS: Previous = Previous::unknown();

/// Installs the handler of both signals. Only the first call does anything.
#[inline]
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        take(libc::SIGSEGV, &SEGV);
        take(libc::SIGBUS, &BUS);
    });
}

/// Installs our handler in front of the present one.
fn take(number: c_int, previous: &Previous) {
    let mut ours = default_action();
    ours.sa_sigaction = caught as *const () as usize;
    // On the stack for signals, if there is one: the program's own handler may exist for a full stack. The signal is
    // blocked meanwhile, so if the handler itself faults, the process dies instead of looping.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let mut theirs = default_action();
    // SAFETY: both structures are whole, and `caught` does only what a handler may do. The kernel refuses neither call.
    // If something else does, signals kill the process as before.
    unsafe {
        // Read before ours is installed, because a signal may come at once.
        libc::sigaction(number, ptr::null(), &raw mut theirs);
        _ = previous.seen.set(theirs);
        // Read again, because another thread may have changed it in between.
        if libc::sigaction(number, &raw const ours, &raw mut theirs) == 0 {
            _ = previous.replaced.set(theirs);
        }
    }
}

/// Returns the action SIG_DFL, without flags and with an empty mask.
fn default_action() -> sigaction {
    // SAFETY: integers and a pointer that may be null.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// The signal handler.
extern "C" fn caught(number: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel makes both structures for this call.
    let (code, address, registers) = unsafe {
        let context: *mut libc::ucontext_t = context.cast();
        ((*info).si_code, (*info).si_addr().addr(), &mut (*context).uc_mcontext)
    };
    // A kill(2), or memory that broke without an access to it, may come while an access runs. Such a signal is not the
    // access's.
    let by_instruction = code > 0 && !(number == libc::SIGBUS && code == libc::BUS_MCEERR_AO);
    if by_instruction && instructions::is_access(counter(registers)) {
        leave_with(registers, Outcome::of(Signal { number, code, address }));
    } else {
        pass_on(number, info, context, by_instruction);
    }
}

#[cfg(target_arch = "x86_64")]
fn counter(registers: &mcontext_t) -> usize {
    registers.gregs[libc::REG_RIP as usize] as usize
}

#[cfg(target_arch = "aarch64")]
fn counter(registers: &mcontext_t) -> usize {
    registers.pc as usize
}

/// Makes the access return `outcome`.
#[cfg(target_arch = "x86_64")]
fn leave_with(registers: &mut mcontext_t, outcome: Outcome) {
    registers.gregs[libc::REG_RAX as usize] = outcome.value as _;
    registers.gregs[libc::REG_RDX as usize] = outcome.signal as _;
    registers.gregs[libc::REG_RIP as usize] = (instructions::leave as *const ()).addr() as _;
}

/// Makes the access return `outcome`.
#[cfg(target_arch = "aarch64")]
fn leave_with(registers: &mut mcontext_t, outcome: Outcome) {
    registers.regs[0] = outcome.value;
    registers.regs[1] = outcome.signal;
    registers.pc = (instructions::leave as *const ()).addr() as _;
}

/// Handles the signal as it would be handled without this handler.
fn pass_on(number: c_int, info: *mut siginfo_t, context: *mut c_void, by_instruction: bool) {
    let previous = if number == libc::SIGBUS { &BUS } else { &SEGV };
    let Some(action) = previous.replaced.get().or(previous.seen.get()) else {
        return by_default(number, info, by_instruction);
    };
    match action.sa_sigaction {
        // The kernel does not let a signal be ignored that an instruction raises: the instruction would raise it for
        // ever.
        libc::SIG_IGN if !by_instruction => return,
        libc::SIG_IGN | libc::SIG_DFL => return by_default(number, info, by_instruction),
        _ => {}
    }
    if action.sa_flags & libc::SA_RESETHAND != 0 && previous.spent.swap(true, Ordering::Relaxed) {
        return by_default(number, info, by_instruction);
    }
    block_as(action, number);
    let handler: *const () = ptr::with_exposed_provenance(action.sa_sigaction);
    // SAFETY: the program gave the kernel this function for this signal, with the type that the flag names; the kernel
    // made the arguments.
    unsafe {
        if action.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = transmute(handler);
            handler(number, info, context);
        } else {
            let handler: extern "C" fn(c_int) = transmute(handler);
            handler(number);
        }
    }
}

/// Blocks the signals that the kernel would have blocked for this action. The kernel restores the mask when we return.
fn block_as(action: &sigaction, number: c_int) {
    // SAFETY: changes only the calling thread's mask, to the one that the handler expects.
    unsafe {
        if action.sa_flags & libc::SA_NODEFER != 0 {
            let mut this = MaybeUninit::<sigset_t>::uninit();
            libc::sigemptyset(this.as_mut_ptr());
            libc::sigaddset(this.as_mut_ptr(), number);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, this.as_ptr(), ptr::null_mut());
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const action.sa_mask, ptr::null_mut());
    }
}

/// Lets the process die of the signal.
fn by_default(number: c_int, info: *mut siginfo_t, by_instruction: bool) {
    let default = default_action();
    // SAFETY: the structures are whole. The second call sends this thread its own signal again.
    unsafe {
        libc::sigaction(number, &raw const default, ptr::null_mut());
        // The instruction raises its signal again when we return. Any other signal must be sent again.
        if !by_instruction {
            let (process, thread) = (libc::getpid(), libc::syscall(libc::SYS_gettid));
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, number, info);
        }
    }
}
