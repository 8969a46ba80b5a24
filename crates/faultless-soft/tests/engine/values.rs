//! No argument that a caller passes makes a call panic.
#![allow(dropping_copy_types)]

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::{Access, Protection};
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::{AddressSpace, Advice, Engine, File, Limits, LockMode, MapRequest, Placement, SyncFlags};
use faultless_soft::Soft;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

struct Zeros;

impl Store for Zeros {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(5 * PAGE_SIZE + 7)
    }
    fn submit(&self, mut transfer: Transfer) {
        if let Bytes::Read(bytes) = transfer.bytes() {
            bytes.fill(0);
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
    fn set_length(&self, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
    fn punch(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

#[test]
fn extreme_values_panic_nowhere() {
    let values: Vec<u64> = [0, 1, 4096, 5 * 4096 + 7]
        .into_iter()
        .chain([31, 47, 63].into_iter().flat_map(|bit| {
            let power = 1_u64 << bit;
            [power - 4096, power - 1, power]
        }))
        .chain([1 << 48, u64::MAX - 4095, u64::MAX])
        .collect();
    let mut panics = Vec::new();
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        eprintln!("PANIC at {place}: {info}");
    }));
    let engine =
        Engine::new(Soft::new(64).unwrap(), Limits { cached_pages: 8, ..Limits::default() }).unwrap();
    let file = File::open_rw(&engine, Arc::new(Zeros)).unwrap();
    let memory = File::in_memory(&engine, 3 * PAGE_SIZE + 1).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let space = AddressSpace::<Soft, Faultless>::new(&engine).unwrap();
    space
        .map(
            MapRequest::shared_file(&file, 0, 3 * PAGE_SIZE, rights)
                .at(Placement::Fixed(VirtAddr::new(1 << 21))),
        )
        .unwrap();
    space.map(MapRequest::anonymous(3 * PAGE_SIZE).at(Placement::Fixed(VirtAddr::new(1 << 31)))).unwrap();
    for &a in &values {
        for &b in &values {
            let at = VirtAddr::new(a);
            let start = std::time::Instant::now();
            let mut check = |what: &str, call: &dyn Fn()| {
                let before = start.elapsed();
                let result = catch_unwind(AssertUnwindSafe(call));
                let took = start.elapsed() - before;
                if took.as_millis() > 500 {
                    eprintln!("{what}({a:#x}, {b:#x}) takes {took:?}");
                }
                if result.is_err() {
                    panics.push(format!("{what}({a:#x}, {b:#x})"));
                }
            };
            for file in [&file, &memory] {
                check("map at", &|| {
                    drop(space.map(MapRequest::shared_file(file, a, b, rights).at(Placement::Hint(at))))
                });
                check("map", &|| drop(space.map(MapRequest::file(file, b, a, rights))));
                check("read", &|| drop(file.handle().read_at(a, &mut vec![0; b.min(9000) as usize])));
                check("write", &|| drop(file.handle().write_at(a, &vec![0; b.min(9000) as usize])));
                check("hole", &|| drop(file.handle().punch_hole(a, b)));
                check("refresh", &|| drop(file.refresh(a, b)));
                check("handle length", &|| drop(file.handle().set_length(a)));
                check("length", &|| file.set_length(a).unwrap());
                check("hole behind", &|| drop(file.handle().punch_hole(b, a)));
                check("write behind", &|| drop(file.handle().write_at(b, &[1; 5000])));
                check("sync", &|| drop(file.sync()));
                check("lock folio", &|| drop(file.try_lock_folio(a)));
                check("length back", &|| file.set_length(5 * PAGE_SIZE + 7).unwrap());
            }
            check("map fixed", &|| {
                drop(space.map(MapRequest::anonymous(b).at(Placement::FixedNoReplace(at))))
            });
            check("protect", &|| {
                if b < 1 << 33 {
                    drop(space.protect(at, b, rights))
                }
            });
            check("discard", &|| {
                if b < 1 << 33 {
                    drop(space.discard(at, b))
                }
            });
            check("resident", &|| {
                if b < 1 << 30 {
                    drop(space.resident(at, b))
                }
            });
            check("msync", &|| drop(space.sync(at, b, SyncFlags::SYNC)));
            check("pin", &|| drop(space.pin(at, Access::Write)));
            check("fault", &|| drop(space.fault(at, Access::Write)));
            check("remote", &|| drop(space.write_remote(at, &vec![1; b.min(9000) as usize])));
            for advice in [
                Advice::WillNeed,
                Advice::DontNeed,
                Advice::Free,
                Advice::Remove,
                Advice::DontFork,
                Advice::GuardInstall,
                Advice::GuardRemove,
            ] {
                check("advise", &|| {
                    if b < 1 << 30 {
                        drop(space.advise(at, b, advice))
                    }
                });
            }
            check("mlock", &|| {
                if b < 1 << 22 {
                    drop(space.lock(at, b, LockMode::OnFault))
                }
            });
            check("unmap", &|| {
                if a != 1 << 21 && a != 1 << 31 && b < 1 << 33 {
                    drop(space.unmap(at, b))
                }
            });
        }
    }
    assert!(panics.is_empty(), "{} panics: {:?}", panics.len(), &panics[..panics.len().min(12)]);
}
