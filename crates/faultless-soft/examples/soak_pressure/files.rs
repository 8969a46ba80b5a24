//! Files and shared memory.

use crate::Failure;
use crate::counts::Kind;
use crate::machine::{FILE, MEMORY, Process, TOGETHER, WRITTEN};
use crate::model::{at_page, bytes_of, check, check_any, compare, page_of, wrong};
use crate::worker::Worker;
use faultless::Advice;
use faultless::address::PAGE_SIZE;
use faultless_soft::Cpu;

impl Worker<'_> {
    pub fn read_file(&mut self, process: &Process) -> Result<(), Failure> {
        let page = self.numbers.u64(..FILE);
        let mut bytes = vec![0; PAGE_SIZE as usize];
        process.space.read_bytes(at_page(process.file, page), &mut bytes)?;
        self.note(Kind::ReadFile);
        if bytes == page_of(page) {
            return Ok(());
        }
        Err(wrong(format!("page {page} of the file has other bytes")))
    }

    /// Reads and stores to a page of the written file, by the mapping or by a handle.
    pub fn access_written(&mut self, process: &Process) -> Result<(), Failure> {
        let mine = self.numbers.usize(..WRITTEN as usize);
        let page = self.number as u64 * WRITTEN + mine as u64;
        let at = at_page(process.written, page);
        let handle = self.machine().written.handle();
        let stamp = if self.numbers.bool() {
            check_any(&process.space, at, PAGE_SIZE, &self.written[mine])?
        } else {
            let mut bytes = vec![0xaa; PAGE_SIZE as usize];
            let _ = handle.read_at(page * PAGE_SIZE, &mut bytes)?;
            compare(&format!("page {page} of the written file"), &bytes, &self.written[mine])?
        };
        // If the store fails since the process is killed, the page has one of the two.
        let next = self.next_stamp();
        self.written[mine] = vec![stamp, next];
        let bytes = bytes_of(next, PAGE_SIZE);
        if self.numbers.u32(..4) == 0 {
            let _ = handle.write_at(page * PAGE_SIZE, &bytes)?;
        } else {
            process.space.write_bytes(at, &bytes)?;
        }
        self.written[mine] = vec![next];
        self.note(Kind::WriteFile);
        Ok(())
    }

    pub fn sync(&mut self) -> Result<(), Failure> {
        self.machine().written.sync()?;
        self.note(Kind::Sync);
        Ok(())
    }

    /// Returns one of this thread's pages of the shared memory.
    pub fn memory_page(&mut self) -> u64 {
        self.numbers.u64(..MEMORY / TOGETHER as u64) * TOGETHER as u64 + self.me
    }

    pub fn access_memory(&mut self, process: &Process) -> Result<(), Failure> {
        let page = self.memory_page();
        let stamp = self.memory.get(&page).copied().unwrap_or(0);
        let (at, file) = &process.memory;
        check(&process.space, at_page(*at, page), PAGE_SIZE, stamp)?;
        let next = self.next_stamp();
        let bytes = bytes_of(next, PAGE_SIZE);
        if self.numbers.u32(..4) == 0 {
            let _ = file.handle().write_at(page * PAGE_SIZE, &bytes)?;
        } else {
            process.space.write_bytes(at_page(*at, page), &bytes)?;
        }
        self.memory.insert(page, next);
        self.note(Kind::Memory);
        Ok(())
    }

    /// Punches a hole in the shared memory (MADV_REMOVE).
    pub fn punch(&mut self, process: &Process) -> Result<(), Failure> {
        let page = self.memory_page();
        let at = at_page(process.memory.0, page);
        process.space.advise(at, PAGE_SIZE, Advice::Remove)?;
        self.memory.remove(&page);
        self.note(Kind::Hole);
        check(&process.space, at, PAGE_SIZE, 0)
    }
}
