//! Prints operations as C calls.

use super::operation::{ADVICE, At, Length, Move, Object, Operation, Place, REFUSING, Rights};
use faultless::address::PAGE_SIZE;
use std::fmt::{self, Display, Formatter};

/// Writes bytes as pages and a rest: `3*P`, `3*P+0x10`.
fn pages_of(f: &mut Formatter<'_>, bytes: u64) -> fmt::Result {
    match (bytes / PAGE_SIZE, bytes % PAGE_SIZE) {
        _ if bytes as i64 <= 0 && bytes != 0 => write!(f, "{:#x}", bytes),
        (0, 0) => f.write_str("0"),
        (0, rest) => write!(f, "{rest:#x}"),
        (pages, 0) => write!(f, "{pages}*P"),
        (pages, rest) => write!(f, "{pages}*P+{rest:#x}"),
    }
}

impl Display for At {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (self.0 / PAGE_SIZE, self.0 % PAGE_SIZE) {
            (page, 0) => write!(f, "p{page}"),
            (page, rest) => write!(f, "p{page}+{rest:#x}"),
        }
    }
}

impl Display for Length {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        pages_of(f, self.0)
    }
}

impl Display for Rights {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        names(f, self.0, &[(1, "PROT_READ"), (2, "PROT_WRITE"), (4, "PROT_EXEC")], "PROT_NONE")
    }
}

/// Offset in a file, printed as pages and a rest.
struct Offset(u64);

impl Display for Offset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        pages_of(f, self.0)
    }
}

/// Writes the names of the set bits. Bits without a name are written as a number.
fn names(f: &mut Formatter<'_>, bits: u8, names: &[(u8, &str)], none: &str) -> fmt::Result {
    let (mut rest, mut between) = (bits, "");
    for (bit, name) in names.iter().filter(|(bit, _)| bits & bit != 0) {
        write!(f, "{between}{name}")?;
        (rest, between) = (rest & !bit, "|");
    }
    match rest {
        0 if bits == 0 => f.write_str(none),
        0 => Ok(()),
        rest => write!(f, "{between}{rest}"),
    }
}

fn map(f: &mut Formatter<'_>, operation: &Operation) -> fmt::Result {
    let Operation::Map { at, length, rights, object, place, with } = operation else { return Ok(()) };
    match place {
        Place::Anywhere => write!(f, "munmap(mmap(NULL, {length}, {rights}, ")?,
        _ => write!(f, "mmap({at}, {length}, {rights}, ")?,
    }
    let (Object::Anonymous { shared } | Object::File { shared, .. }) = object;
    f.write_str(if *shared { "MAP_SHARED" } else { "MAP_PRIVATE" })?;
    if let Object::Anonymous { .. } = object {
        f.write_str("|MAP_ANONYMOUS")?;
    }
    f.write_str(match place {
        Place::Fixed => "|MAP_FIXED",
        Place::NoReplace => "|MAP_FIXED_NOREPLACE",
        Place::Anywhere => "",
    })?;
    for flag in with.iter_names() {
        write!(f, "|MAP_{}", flag.0)?;
    }
    match object {
        Object::Anonymous { .. } => f.write_str(", -1, 0)")?,
        Object::File { file, first, .. } => {
            write!(f, ", file{file}, {})", Offset(first.wrapping_mul(PAGE_SIZE)))?
        }
    }
    match place {
        Place::Anywhere => write!(f, ", {length})"),
        _ => Ok(()),
    }
}

impl Display for Operation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map { .. } => map(f, self),
            Self::Unmap { at, length } => write!(f, "munmap({at}, {length})"),
            Self::Protect { at, length, rights, down } => {
                let down = if *down { "|PROT_GROWSDOWN" } else { "" };
                write!(f, "mprotect({at}, {length}, {rights}{down})")
            }
            Self::Remap { at, length, new_length, moves } => {
                write!(f, "mremap({at}, {length}, {new_length}, ")?;
                match moves {
                    Move::No => f.write_str("0)"),
                    Move::May => f.write_str("MREMAP_MAYMOVE)"),
                    Move::To(to) => write!(f, "MREMAP_MAYMOVE|MREMAP_FIXED, {to})"),
                    Move::Leaving(to) => write!(f, "MREMAP_MAYMOVE|MREMAP_FIXED|MREMAP_DONTUNMAP, {to})"),
                }
            }
            Self::Break { at } => write!(f, "brk({at})"),
            Self::Advise { at, length, advice } => {
                let known = ADVICE.iter().find(|(number, _)| number == advice);
                match known.and_then(|(_, name)| name.strip_prefix("madvise ")) {
                    Some(name) => write!(f, "madvise({at}, {length}, MADV_{name})"),
                    None => write!(f, "madvise({at}, {length}, {advice})"),
                }
            }
            Self::Lock { at, length, on_fault: false } => write!(f, "mlock({at}, {length})"),
            Self::Lock { at, length, on_fault: true } => write!(f, "mlock2({at}, {length}, MLOCK_ONFAULT)"),
            Self::Unlock { at, length } => write!(f, "munlock({at}, {length})"),
            Self::LockAll { flags } => {
                f.write_str("mlockall(")?;
                names(f, *flags, &[(1, "MCL_CURRENT"), (2, "MCL_FUTURE"), (4, "MCL_ONFAULT")], "0")?;
                f.write_str(")")
            }
            Self::UnlockAll => f.write_str("munlockall()"),
            Self::Sync { at, length, flags } => {
                write!(f, "msync({at}, {length}, ")?;
                names(f, *flags, &[(1, "MS_ASYNC"), (2, "MS_INVALIDATE"), (4, "MS_SYNC")], "0")?;
                f.write_str(")")
            }
            Self::Resident { at, length } => write!(f, "mincore({at}, {length})"),
            Self::Seal { at, length } => write!(f, "mseal({at}, {length}, 0)"),
            Self::Load { at } => write!(f, "load *(u64 *){at}"),
            Self::LoadByte { at } => write!(f, "load *(u8 *){at}"),
            Self::Store { at, value } => write!(f, "*(u64 *){at} = {value:#x}"),
            Self::StoreByte { at, value } => write!(f, "*(u8 *){at} = {value:#x}"),
            Self::Add { at, value } => write!(f, "atomic_fetch_add((u64 *){at}, {value:#x})"),
            Self::Read { at, pages } => write!(f, "read all bytes of {at}, {pages}*P"),
            Self::ReadRemote { at, length } => write!(f, "process_vm_readv({at}, {length})"),
            Self::WriteRemote { at, length, value } => {
                write!(f, "process_vm_writev({at}, {length} of {value:#x})")
            }
            Self::ReadFile { file, offset, length } => {
                write!(f, "pread(file{file}, {length}, {})", Offset(*offset))
            }
            Self::WriteFile { file, offset, length, value } => {
                write!(f, "pwrite(file{file}, {length} of {value:#x}, {})", Offset(*offset))
            }
            Self::Truncate { file, length } => write!(f, "ftruncate(file{file}, {})", Offset(*length)),
            Self::Punch { file, offset, length } => {
                write!(f, "fallocate(file{file}, FALLOC_FL_PUNCH_HOLE, {}, {length})", Offset(*offset))
            }
            Self::StartSync { file } => {
                let flags = "SYNC_FILE_RANGE_WAIT_BEFORE|SYNC_FILE_RANGE_WRITE";
                write!(f, "sync_file_range(file{file}, 0, 0, {flags})")
            }
            Self::SealFile => write!(f, "fcntl(file{REFUSING}, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)"),
            Self::Fork => f.write_str("fork()              // the child:"),
            Self::Exit => f.write_str("_exit(0)            // back in its parent"),
            Self::Look => f.write_str("read all of the window and its flags"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::operation::With;
    use super::*;

    #[test]
    fn operations_read_like_c() {
        let object = Object::File { file: 1, first: 2, shared: true };
        let (at, length, rights) = (At::page(3), Length(5 * PAGE_SIZE + 1), Rights(3));
        let with = With::POPULATE | With::NORESERVE;
        let map = Operation::Map { at, length, rights, object, place: Place::Fixed, with };
        assert_eq!(
            map.to_string(),
            "mmap(p3, 5*P+0x1, PROT_READ|PROT_WRITE, MAP_SHARED|MAP_FIXED|MAP_POPULATE|MAP_NORESERVE, file1, 2*P)"
        );
        let store = Operation::StoreByte { at: At(0x1005), value: 7 };
        assert_eq!(store.to_string(), "*(u8 *)p1+0x5 = 0x7");
        assert_eq!(
            Operation::Unmap { at, length: Length(u64::MAX) }.to_string(),
            "munmap(p3, 0xffffffffffffffff)"
        );
    }
}
