//! Swap devices of the tests.

use faultless::address::PAGE_SIZE;
use faultless::store::FileStore;
use faultless::swap::{CompressedMemory, StoreDevice, SwapDevice};
use std::sync::Arc;

/// The number of pages for which a device has room.
const PLACES: u64 = 8192;

/// Makes a device that compresses pages in memory.
pub fn compressed() -> Arc<dyn SwapDevice> {
    Arc::new(CompressedMemory::new(PLACES, (PLACES * PAGE_SIZE) as usize).unwrap())
}

/// Makes a real file, which is gone when it is closed.
pub fn disk() -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PLACES * PAGE_SIZE).unwrap();
    file
}

/// Makes a store of such a file.
pub fn file_store() -> FileStore {
    FileStore::from_file(disk()).unwrap()
}

/// Makes a device of such a store.
pub fn file() -> Arc<dyn SwapDevice> {
    Arc::new(StoreDevice::new(file_store()).unwrap())
}
