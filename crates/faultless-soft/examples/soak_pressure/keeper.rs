//! A thread for each engine that removes and adds swap devices, starts and ends the background worker, and changes limits.

use crate::counts::Kind;
use crate::machine::{Machine, World};
use crate::model::wrong;
use crate::{Failure, waits};
use fastrand::Rng;
use faultless::BackgroundThread;
use faultless::swap::RemoveSwapError;
use faultless_soft::Soft;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

pub struct Keeper<'a> {
    world: &'a World,
    /// The number of the engine, and of the thread.
    number: usize,
    thread: usize,
    numbers: Rng,
    worker: Option<BackgroundThread<Soft>>,
}

impl<'a> Keeper<'a> {
    pub fn new(world: &'a World, number: usize, thread: usize) -> Self {
        Self { world, number, thread, numbers: Rng::with_seed(thread as u64 + 1), worker: None }
    }

    fn machine(&self) -> &'a Machine {
        &self.world.machines[self.number]
    }

    pub fn run(mut self) -> Result<(), Failure> {
        let begun = &self.world.begun[self.thread];
        while !self.world.is_over() {
            sleep(Duration::from_millis(self.numbers.u64(5..100)));
            waits::begin();
            begun.store(self.world.since_start(), Ordering::Relaxed);
            match self.numbers.u32(..8) {
                0..4 => self.swap_off_and_on()?,
                4 => self.start_or_end_worker()?,
                _ => self.set_limit()?,
            }
            begun.store(0, Ordering::Relaxed);
        }
        for (family, child) in self.machine().families.iter().zip([0, 1]) {
            family.set(child, self.world.pages, false)?;
        }
        Ok(())
    }

    /// Removes a device and adds it again. The other devices have room for its pages.
    fn swap_off_and_on(&mut self) -> Result<(), Failure> {
        let Machine { engine, devices, .. } = self.machine();
        let device = &devices[self.numbers.usize(..devices.len())];
        match engine.remove_swap(device) {
            Ok(removed) if removed.lost != 0 => {
                return Err(wrong(format!("swapoff has lost {} pages", removed.lost)));
            }
            Ok(_) => self.world.counts.note(Kind::SwapOff),
            Err(RemoveSwapError::Busy { lost: 0, .. }) => {
                self.world.counts.note(Kind::SwapOffBusy);
                return Ok(());
            }
            Err(error) => return Err(format!("swapoff: {error}").into()),
        }
        sleep(Duration::from_millis(self.numbers.u64(..50)));
        engine.add_swap(device.clone())?;
        self.world.counts.note(Kind::SwapOn);
        Ok(())
    }

    fn start_or_end_worker(&mut self) -> Result<(), Failure> {
        if self.worker.take().is_none() {
            self.worker = Some(self.machine().engine.spawn_background()?);
            self.world.counts.note(Kind::Worker);
        }
        Ok(())
    }

    fn set_limit(&mut self) -> Result<(), Failure> {
        let families = &self.machine().families;
        let family = &families[self.numbers.usize(..families.len())];
        family.set(self.numbers.usize(..2), self.world.pages, self.numbers.bool())?;
        self.world.counts.note(Kind::SetLimit);
        Ok(())
    }
}
