//! A store of zeros, for tests of how faults wait for reads.

use faultless::address::PAGE_SIZE;
use faultless::store::{Bytes, Store, StoreError, Transfer};

/// A store of a number of pages of zeros. It ends each transfer at once.
pub struct Zeros(pub u64);

impl Store for Zeros {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.0 * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        if let Bytes::Read(bytes) = transfer.bytes() {
            bytes.fill(0);
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
}
