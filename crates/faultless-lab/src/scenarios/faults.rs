//! Loads that may have to wait for a read, measured one by one.

use super::actors::{Round, thread_cpu};
use crate::machine::{Memory, Touched};
use crate::measure::{IN_MAJOR_FAULTS, Latency, Measured};
use crate::trouble::Trouble;
use faultless::address::VirtAddr;
use faultless::protection::Access;
use std::time::{Duration, Instant};

/// The measurements of the major faults of one thread.
#[derive(Default)]
pub struct MajorFaults {
    latency: Latency,
    cpu: Duration,
    /// The increase of each counter during these faults. Other faults of this thread, and those of other threads, are
    /// not included. `None`: the machine does not keep the counter.
    counted: [Option<u64>; IN_MAJOR_FAULTS.len()],
}

impl MajorFaults {
    /// Loads a word. If the load waits for a read and the warm-up is over, records the fault.
    ///
    /// # Errors
    /// The error of the memory, if the load fails.
    pub fn load(
        &mut self,
        memory: &impl Memory,
        round: &Round<'_>,
        at: VirtAddr,
    ) -> Result<Touched, Trouble> {
        // The clock is read last: on some machines `counted` is a system call, and it is not part of the fault.
        let (before, cpu, start) = (memory.counted(), thread_cpu(), Instant::now());
        let touched = memory.touch(at, Access::Read)?;
        if touched == Touched::Major && round.measures(start) {
            self.latency.record(start.elapsed());
            self.cpu += thread_cpu() - cpu;
            for ((sum, before), after) in self.counted.iter_mut().zip(before).zip(memory.counted()) {
                if let (Some(before), Some(after)) = (before, after) {
                    *sum = Some(sum.unwrap_or(0) + after.wrapping_sub(before));
                }
            }
        }
        Ok(touched)
    }

    /// Adds these measurements to `measured`.
    pub fn add_to(&self, measured: &mut Measured) {
        measured.faults_timed += self.latency.count();
        measured.fault_cpu += self.cpu;
        measured.add_latency("fault", &self.latency);
        for ((name, _), counted) in IN_MAJOR_FAULTS.iter().zip(self.counted) {
            if let Some(n) = counted {
                measured.count(name, n);
            }
        }
    }
}
