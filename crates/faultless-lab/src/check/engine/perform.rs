//! The operations of a check on the engine's side.

use super::super::operation::{At, Move, Object, Operation, PAGES, Place, REFUSING, STORED, WINDOW, With};
use super::super::step::{Caught, Outcome, Seen, number_of};
use super::{Machine, Space, end};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::errno::EPERM;
use faultless::protection::{Protection, Sharing};
use faultless::vma::MappingFlags;
use faultless::{
    Advice, AdviseError, FaultError, FileError, LockAll, LockError, LockMode, MapError, MapRequest,
    Placement, ProtectError, RemapError, RemapFlags, RemapRequest, RemoteError, ResidentError, SealError,
    Source, SyncError, SyncFlags, UnknownAdvice, UnmapError,
};
use faultless_soft::{AccessError, Cpu, Soft};

impl<D: LockingDesign> Machine<D> {
    pub(super) fn perform(&mut self, operation: &Operation) -> Outcome {
        let (space, offset) = (self.space(), self.offset);
        let address = |at| self.address(at);
        if !operation.is_tried(self.files[REFUSING].is_sealed()) {
            return Outcome::Done(0);
        }
        match *operation {
            Operation::Map { place, length, .. } => match space.map(self.request(operation)) {
                Err(error) => Outcome::Error(MapError::errno(&error)),
                Ok(at) if place == Place::Anywhere => {
                    result(space.unmap(at, length.0).map(|()| 0), UnmapError::errno)
                }
                Ok(at) => Outcome::Done(at.get() - offset),
            },
            Operation::Unmap { at, length } => {
                result(space.unmap(address(at), length.0).map(|()| 0), UnmapError::errno)
            }
            Operation::Protect { at, length, rights, down } => {
                let protected = match down {
                    false => space.protect(address(at), length.0, rights.into()),
                    true => space.protect_down(address(at), length.0, rights.into()),
                };
                result(protected.map(|()| 0), ProtectError::errno)
            }
            Operation::Remap { at, length, new_length, moves } => {
                let (flags, new) = match moves {
                    Move::No => (RemapFlags::empty(), VirtAddr::default()),
                    Move::May => (RemapFlags::MAY_MOVE, VirtAddr::default()),
                    Move::To(to) => (RemapFlags::MAY_MOVE | RemapFlags::FIXED, address(to)),
                    Move::Leaving(to) => (RemapFlags::all(), address(to)),
                };
                let (old, old_length, new_length) = (address(at), length.0, new_length.0);
                match space.remap(RemapRequest { old, old_length, new_length, flags, new }) {
                    Err(error) => Outcome::Error(RemapError::errno(&error)),
                    Ok(to) if (address(At(0))..address(At::page(PAGES))).contains(&to) => {
                        Outcome::Done(to.get() - offset)
                    }
                    Ok(to) => {
                        result(space.unmap(to, new_length).map(|()| Outcome::ELSEWHERE), UnmapError::errno)
                    }
                }
            }
            Operation::Break { at } => Outcome::Done(space.brk(address(at)).get()),
            Operation::Advise { at, length, advice } => match Advice::try_from(advice) {
                Ok(advice) => {
                    result(space.advise(address(at), length.0, advice).map(|()| 0), AdviseError::errno)
                }
                Err(unknown) => Outcome::Error(UnknownAdvice::errno(&unknown)),
            },
            Operation::Lock { at, length, on_fault } => {
                let mode = if on_fault { LockMode::OnFault } else { LockMode::Now };
                result(space.lock(address(at), length.0, mode).map(|()| 0), LockError::errno)
            }
            Operation::Unlock { at, length } => {
                result(space.unlock(address(at), length.0).map(|()| 0), LockError::errno)
            }
            Operation::LockAll { flags } => {
                result(space.lock_all(LockAll::from_bits_retain(flags)).map(|()| 0), LockError::errno)
            }
            Operation::UnlockAll => result(space.unlock_all().map(|()| 0), LockError::errno),
            Operation::Sync { at, length, flags } => {
                let synced = space.sync(address(at), length.0, SyncFlags::from_bits_retain(flags));
                // Linux may have written more than requested; see `syncs`.
                if operation.syncs(&self.spaces.last().expect("the first space stays").said)
                    && let Err(error) = self.files[STORED].handle.sync()
                {
                    return Outcome::Broken(error.to_string());
                }
                result(synced.map(|()| 0), SyncError::errno)
            }
            Operation::Resident { at, length } => match space.resident(address(at), length.0) {
                Ok(pages) => {
                    Outcome::resident(at, pages, &self.spaces.last().expect("the first space stays").said)
                }
                Err(error) => Outcome::Error(ResidentError::errno(&error)),
            },
            Operation::Seal { at, length } => {
                result(space.seal(address(at), length.0).map(|()| 0), SealError::errno)
            }
            Operation::Load { at } => access(space.load_u64(address(at))),
            Operation::LoadByte { at } => {
                let mut byte = [0];
                faulted(space.read_bytes(address(at), &mut byte).map(|()| u64::from(byte[0])))
            }
            Operation::Store { at, value } => access(space.store_u64(address(at), value).map(|()| 0)),
            Operation::StoreByte { at, value } => {
                faulted(space.write_bytes(address(at), &[value]).map(|()| 0))
            }
            Operation::Add { at, value } => access(space.fetch_add_u64(address(at), value)),
            Operation::Read { at, pages } => self.read(at, pages),
            Operation::ReadRemote { at, length } => {
                let mut bytes = vec![0; length.0 as usize];
                match space.read_remote(address(at), &mut bytes) {
                    Ok(done) => Outcome::read(&bytes[..done]),
                    Err(error) => Outcome::Error(RemoteError::errno(&error)),
                }
            }
            Operation::WriteRemote { at, length, value } => {
                let bytes = vec![value; length.0 as usize];
                result(space.write_remote(address(at), &bytes).map(|done| done as u64), RemoteError::errno)
            }
            Operation::ReadFile { file, offset, length } => {
                let mut bytes = vec![0; length.0 as usize];
                match self.files[file].handle.read_at(offset, &mut bytes) {
                    Ok(done) => Outcome::read(&bytes[..done]),
                    Err(error) => Outcome::Error(FileError::errno(&error)),
                }
            }
            // The seal exists only on Linux, so the engine does not know it.
            Operation::WriteFile { file: REFUSING, length, .. }
                if length.0 != 0 && self.files[REFUSING].is_sealed() =>
            {
                Outcome::Error(EPERM)
            }
            Operation::WriteFile { file, offset, length, value } => {
                let written = self.files[file].handle.write_at(offset, &vec![value; length.0 as usize]);
                result(written.map(|done| done as u64), FileError::errno)
            }
            Operation::Truncate { file, length } => {
                result(self.files[file].resize(length).map(|()| 0), FileError::errno)
            }
            Operation::Punch { file, offset, length } => {
                result(self.files[file].handle.punch_hole(offset, length.0).map(|()| 0), FileError::errno)
            }
            Operation::StartSync { file } => {
                self.files[file].handle.start_sync();
                Outcome::Done(0)
            }
            Operation::SealFile => {
                self.files[REFUSING].seal();
                Outcome::Done(0)
            }
            Operation::Fork => match space.fork() {
                Ok(child) => {
                    let said = self.said().clone();
                    self.spaces.push(Space { space: child, said, locked: 0 });
                    Outcome::Done(0)
                }
                Err(error) => Outcome::Broken(error.to_string()),
            },
            Operation::Exit => match self.spaces.len() {
                1 => Outcome::Done(0),
                _ => {
                    let child = self.spaces.pop().expect("there are two");
                    if self.is_shared {
                        child.space.exit();
                        return Outcome::Done(0);
                    }
                    end(child.space).map_or_else(Outcome::Broken, |()| Outcome::Done(0))
                }
            },
            Operation::Look => self.look(),
        }
    }

    /// Returns the request of a [`Operation::Map`].
    fn request(&self, operation: &Operation) -> MapRequest<Soft> {
        let Operation::Map { at, length, rights, object, place, with } = *operation else {
            return MapRequest::anonymous(0);
        };
        let source = match object {
            Object::Anonymous { shared: false } => Source::Anonymous,
            Object::Anonymous { shared: true } => Source::AnonymousShared,
            Object::File { file, first, shared } => Source::File {
                file: self.files[file].file.clone(),
                first,
                sharing: if shared { Sharing::Shared } else { Sharing::Private },
            },
        };
        let placement = match place {
            Place::Fixed => Placement::Fixed(self.address(at)),
            Place::NoReplace => Placement::FixedNoReplace(self.address(at)),
            Place::Anywhere => Placement::Anywhere,
        };
        let flags = [
            (With::LOCKED, MappingFlags::LOCKED),
            (With::NORESERVE, MappingFlags::NO_RESERVE),
            (With::GROWSDOWN, MappingFlags::GROWS_DOWN),
        ];
        let flags = flags.iter().filter(|(asked, _)| with.contains(*asked)).map(|(_, flag)| *flag);
        MapRequest {
            length: length.0,
            protection: Protection::from(rights),
            source,
            placement,
            flags: flags.collect(),
            populate: with.contains(With::POPULATE),
        }
    }

    /// Reads whole pages, up to the first signal.
    fn read(&self, at: At, pages: u64) -> Outcome {
        let mut bytes = vec![0; (pages * PAGE_SIZE) as usize];
        for (number, page) in bytes.chunks_mut(PAGE_SIZE as usize).enumerate() {
            let done = number as u64 * PAGE_SIZE;
            if let Err(error) = self.space().read_bytes(self.address(At(at.0 + done)), page) {
                return match caught(&error) {
                    Ok(signal) => Outcome::Read(number_of(&bytes[..done as usize]), done, Some(signal)),
                    Err(what) => Outcome::Broken(what),
                };
            }
        }
        Outcome::Read(number_of(&bytes), bytes.len() as u64, None)
    }

    fn look(&self) -> Outcome {
        let mut pages = Vec::with_capacity(PAGES as usize);
        let mut bytes = [0; PAGE_SIZE as usize];
        for page in 0..PAGES {
            pages.push(match self.space().read_bytes(self.address(At::page(page)), &mut bytes) {
                Ok(()) => Seen::Bytes(number_of(&bytes)),
                Err(error) => match caught(&error) {
                    Ok(signal) => Seen::Signal(signal),
                    Err(what) => return Outcome::Broken(what),
                },
            });
        }
        // Only a space that no other thread uses can be audited.
        if !self.is_shared
            && let Err(error) = self.space().audit()
        {
            return Outcome::Broken(format!("the engine's audit: {error}"));
        }
        let mut flags = vec![0; PAGES as usize];
        for info in self.space().mappings() {
            let line = self.line(&info);
            if let Some(pages) = flags.get_mut(line.start as usize..line.end as usize) {
                pages.fill(info.flags.bits());
            }
        }
        Outcome::Looked(pages, flags)
    }
}

fn result<E>(result: Result<u64, E>, errno: impl Fn(&E) -> i32) -> Outcome {
    match result {
        Ok(value) => Outcome::Done(value),
        Err(error) => Outcome::Error(errno(&error)),
    }
}

fn access(result: Result<u64, AccessError>) -> Outcome {
    match result {
        Ok(value) => Outcome::Done(value),
        Err(AccessError::Fault(error)) => faulted(Err(error)),
        Err(error @ AccessError::Unaligned { .. }) => Outcome::Broken(error.to_string()),
    }
}

fn faulted(result: Result<u64, FaultError>) -> Outcome {
    match result {
        Ok(value) => Outcome::Done(value),
        Err(error) => caught(&error).map_or_else(Outcome::Broken, Outcome::Signal),
    }
}

/// Returns the signal that a process would receive.
fn caught(error: &FaultError) -> Result<Caught, String> {
    let (number, code, address) = match error {
        FaultError::NoMapping { address } | FaultError::Guard { address } => (Caught::SEGV, 1, address),
        FaultError::Protection { address, .. } => (Caught::SEGV, 2, address),
        FaultError::PastEnd { address, .. } | FaultError::Io { address, .. } => (Caught::BUS, 2, address),
        other => return Err(other.to_string()),
    };
    Ok(Caught { number, code, at: At(address.get().wrapping_sub(WINDOW)) })
}
