//! Copies from and to another space's memory.

use crate::advice::{NONE, pages};
use crate::shared::{Real, byte as inside, shared};
use crate::*;
use faultless::{Advice, errno};
use faultless_soft::Cpu;

under_every_design! {
    remote_memory_goes_by_rights
    remote_pages_are_had_before_a_byte_is_copied
    any_number_of_remote_pages_can_be_copied
}

on_real_memory! {
    remote_memory_goes_by_rights
    any_number_of_remote_pages_can_be_copied
}

fn remote_memory_goes_by_rights<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(4));
    //   10 rw   11 rw   12 r   13 rw   14 w   15 none   16 -   17 x
    space.map(anonymous(10, 4)).unwrap();
    space.protect(at(12), PAGE_SIZE, Protection::READ).unwrap();
    for (page, rights) in [(14, Protection::WRITE), (15, NONE), (17, Protection::EXECUTE)] {
        space.map(anonymous(page, 1).protection(rights)).unwrap();
    }
    space.map(of_file(&file, 20, 6, READ_WRITE)).unwrap();
    let mut bytes = vec![1; 8 * PAGE_SIZE as usize];
    let mut read = |address: VirtAddr, n: u64| space.read_remote(address, &mut bytes[..n as usize]);
    assert_eq!(read(at(10), pages(4)), Ok(pages(4) as usize));
    assert_eq!(
        read(inside(13, 100), pages(3)),
        Ok(PAGE_SIZE as usize - 100),
        "up to the first page that is not readable"
    );
    for page in [14, 15, 16, 17] {
        assert_eq!(read(at(page), 8).unwrap_err().errno(), errno::EFAULT, "page {page}");
    }
    assert_eq!((read(at(10), 0), read(at(16), 0)), (Ok(0), Ok(0)));
    assert_eq!(read(inside(20, 100), pages(6)), Ok(pages(4) as usize - 100), "up to the end of the file");
    assert!(read(VirtAddr::new(u64::MAX - 4), 8).is_err());

    let bytes = vec![7; 8 * PAGE_SIZE as usize];
    let write = |address: VirtAddr, n: u64| space.write_remote(address, &bytes[..n as usize]);
    assert_eq!(write(inside(11, 96), pages(2)), Ok(PAGE_SIZE as usize - 96));
    assert_eq!(space.load_u64(inside(11, 96)).unwrap(), word(7));
    assert_eq!(write(at(12), 8).unwrap_err().errno(), errno::EFAULT);
    assert_eq!(write(at(14), 8), Ok(8));
    assert_eq!(write(at(20), pages(6)), Ok(pages(4) as usize));
    assert_eq!(space.load_u64(at(23)).unwrap(), word(7));
    assert_eq!(write(at(24), 8).unwrap_err().errno(), errno::EFAULT);
    // A private page of the file stays the space's own.
    let other = machine.space::<D>();
    other.map(of_file(&file, 20, 6, READ_WRITE)).unwrap();
    assert_eq!(other.load_u64(at(23)).unwrap(), word(4));
    // The child's memory is separate from the parent's.
    let child = space.fork().unwrap();
    child.write_remote(at(11), &[9; 8]).unwrap();
    let mut seen = [0; 8];
    space.read_remote(inside(11, 96), &mut seen).unwrap();
    assert_eq!(seen, [7; 8]);
    child.read_remote(at(11), &mut seen).unwrap();
    assert_eq!(seen, [9; 8]);
    space.advise(at(13), 1, Advice::GuardInstall).unwrap();
    assert!(matches!(space.read_remote(at(13), &mut seen).unwrap_err().error, FaultError::Guard { .. }));
    space.audit().unwrap();
    drop((space, child, other, file));
    machine.end()
}

fn remote_pages_are_had_before_a_byte_is_copied<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, real) = (machine.space::<D>(), Real::new(&machine, 1));
    // One page of the file is mapped twice: shared, then private. The private copy is made before the store into the
    // shared one.
    space.map(shared(&real.file, 10, 1, READ_WRITE)).unwrap();
    space.map(of_file(&real.file, 11, 1, READ_WRITE)).unwrap();
    let (page, half) = (PAGE_SIZE as usize, PAGE_SIZE as usize / 2);
    assert_eq!(space.write_remote(at(10), &vec![7; page + half]), Ok(page + half));
    let mut seen = vec![0; 2 * page];
    assert_eq!(space.read_remote(at(10), &mut seen), Ok(2 * page));
    assert_eq!(seen[..page + half], vec![7; page + half]);
    assert_eq!(seen[page + half..], vec![1; half]);
    drop((space, real));
    machine.end()
}

fn any_number_of_remote_pages_can_be_copied<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let page = PAGE_SIZE as usize;
    space.map(anonymous(20, 40)).unwrap();
    let many: Vec<u8> = (0..40 * page - 200).map(|i| (i / 100) as u8).collect();
    assert_eq!(space.write_remote(inside(20, 100), &many), Ok(many.len()));
    let mut again = vec![0; 40 * page];
    assert_eq!(space.read_remote(inside(20, 100), &mut again), Ok(many.len() + 100));
    assert_eq!(again[..many.len()], many);
    drop(space);
    machine.end()
}
