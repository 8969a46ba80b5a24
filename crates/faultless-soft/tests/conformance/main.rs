//! The software machine passes the conformance checks of a host, with processors that keep translations and without.
#![cfg(not(loom))]

mod wrong;

use faultless::address::VirtAddr;
use faultless::host::conformance::{Outcome, Rig, check, run};
use faultless::{AddressSpace, Engine, Limits};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use wrong::{Planted, WrongRig};

/// Makes a machine with a given number of frames.
struct Machine(fn(u64) -> Soft);

impl Rig for Machine {
    type Host = Soft;
    type Process = AddressSpace<Soft>;

    fn engine(&self, frames: u64) -> Arc<Engine<Soft>> {
        Engine::new(self.0(frames), Limits::default()).unwrap()
    }

    fn process(&self, space: AddressSpace<Soft>) -> AddressSpace<Soft> {
        space
    }

    fn space<'a>(&self, process: &'a AddressSpace<Soft>) -> &'a AddressSpace<Soft> {
        process
    }

    fn load(&self, process: &AddressSpace<Soft>, address: VirtAddr) -> Option<u64> {
        process.load_u64(address).ok()
    }

    fn store(&self, process: &AddressSpace<Soft>, address: VirtAddr, value: u64) -> bool {
        process.store_u64(address, value).is_ok()
    }
}

#[test]
fn the_software_machine_is_a_host() {
    check(&Machine(|frames| Soft::new(frames).unwrap()));
}

#[test]
fn with_caches_it_is_one_too() {
    check(&Machine(|frames| Soft::with_caches(frames).unwrap()));
}

/// Returns the check that fails on a host with this fault.
fn fails(planted: Planted) -> Option<(&'static str, String)> {
    run(&WrongRig(planted), |_| {}).into_iter().find_map(|one| match one.outcome {
        Outcome::Failed(what) => Some((one.name, what)),
        _ => None,
    })
}

#[test]
fn a_host_with_nothing_planted_passes() {
    assert_eq!(fails(Planted::Nothing), None);
}

const HUNG: &str = "a leaf table that is shared with a child is found in the child";
const WORDS: &str = "found returns the word of the lookup, and now the word in the table";
const WEAKENED: &str = "weaken removes the write right of one entry, and changes nothing else";

#[test]
fn each_planted_fault_is_found() {
    let planted = [
        (Planted::FrameGivenTwice, "a frame is allocated once, and again after it is freed"),
        (Planted::FreedStaysUsed, "a frame is allocated once, and again after it is freed"),
        (Planted::FolioOfTwoFrames, "each frame has its own folio, which is free"),
        (Planted::ZeroesHalf, "zero fills a whole frame with zeros"),
        (Planted::CopiesLess, "copy copies a whole frame"),
        (Planted::WriteSaysAll, "read and write access every byte of a frame, and nothing beyond it"),
        (Planted::NextLeafPassesOver, "next_leaf finds each leaf table, in order"),
        (
            Planted::AnnouncesWhateverIsThere,
            "try_announce sets the bit if the entry is as expected, and let_go clears it",
        ),
        (Planted::LetGoEmpties, "install and let_go keep accessed and dirty bits where the frame stays"),
        (
            Planted::InstallForgetsWhatWasUsed,
            "install and let_go keep accessed and dirty bits where the frame stays",
        ),
        (Planted::ExchangesWhateverIsThere, "exchange changes an entry if it is as expected"),
        (Planted::DropsGuards, "entries of guards and of pages that are not present are kept unchanged"),
        (Planted::UnhookedStaysFound, "unhook removes a leaf table, and its readers notice"),
        (Planted::HangIsLost, HUNG),
        (Planted::HangForgetsTheMark, HUNG),
        (Planted::FoundLooksAgain, WORDS),
        (Planted::NowIsFound, WORDS),
        (Planted::PutIsLost, "put stores a word in the table, with its mark"),
        (Planted::PutForgetsTheMark, "put stores a word in the table, with its mark"),
        (Planted::SharedHangs, "hangs is false for a shared leaf table"),
        (Planted::WeakenLeavesTheRight, WEAKENED),
        (Planted::WeakenClearsAccessed, WEAKENED),
        (Planted::SpareGivenTwice, "each spare is a separate, empty leaf table"),
        (Planted::SpareIsNotEmpty, "each spare is a separate, empty leaf table"),
        (
            Planted::StoresThroughTheMark,
            "after fork, parent and child have the same contents, and neither sees later stores of the other",
        ),
        (Planted::ForeignIsForgotten, "an entry keeps the mark of a foreign frame"),
        (Planted::ForeignShowsAnother, "a mapping of foreign frames accesses these frames, also in a child"),
        (Planted::ForeignIsCounted, "a foreign frame is neither counted nor allocated"),
        (Planted::ForeignIsGivenOut, "a foreign frame is neither counted nor allocated"),
        (Planted::ForeignKeepsItsRights, "a mapping of foreign frames obeys its rights"),
        (Planted::EarlyWakeIsLost, "a wake-up before the sleep is not lost"),
        (Planted::InvalidatesNothing, "after munmap, no access succeeds"),
        (Planted::InvalidatesOnePage, "after munmap, no access succeeds"),
        (
            Planted::InvalidatesOneOfAll,
            "after a file is shortened, no process can access the pages beyond its end",
        ),
    ];
    for (planted, check) in planted {
        let found = fails(planted);
        assert_eq!(found.as_ref().map(|(name, _)| *name), Some(check), "{planted:?}: {found:?}");
    }
}
