//! The staging ring: host bytes on their way into device memory, and back.

use std::sync::Arc;

use core_tensor::BackendError;

use super::device::Gpu;
use super::memory::{DeviceBuffer, HostBuffer};
use super::recorder::{Command, Recorded, record};

/// Bytes of one slot of the ring.
const SLOT: u64 = 16 << 20;
/// Slots: one is filled while the other is copied.
const SLOTS: usize = 2;

#[derive(Debug)]
struct Slot {
    host: HostBuffer,
    used: u64,
    copies: Vec<Command>,
    /// Waits for its end when it is dropped, as whoever stops halfway does.
    pending: Option<Recorded>,
}

/// Brings bytes into device buffers through host-visible memory.
#[derive(Debug)]
pub(crate) struct Uploader {
    gpu: Arc<Gpu>,
    slots: Vec<Slot>,
    current: usize,
}

impl Uploader {
    /// # Errors
    /// When there is no memory for the ring.
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Uploader, BackendError> {
        let slot = |_| {
            let host = HostBuffer::new(gpu, "the staging ring", SLOT, false)?;
            Ok(Slot { host, used: 0, copies: Vec::new(), pending: None })
        };
        let slots = (0..SLOTS).map(slot).collect::<Result<_, BackendError>>()?;
        Ok(Uploader { gpu: gpu.clone(), slots, current: 0 })
    }

    /// Bytes that one call of [`Uploader::write`] may bring at most.
    pub(crate) const CAPACITY: usize = SLOT as usize;

    /// Brings `len` bytes to `offset` of a buffer, both multiples of 4; `fill` makes them in place, over what lay there before. They are
    /// there after [`Uploader::finish`].
    ///
    /// # Errors
    /// When the device fails, or `fill` does.
    pub(crate) fn write<E: From<BackendError>>(
        &mut self,
        to: &DeviceBuffer,
        offset: u64,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Where waiting for a slot failed, the device may still read it.
        self.gpu.check()?;
        if len == 0 {
            return Ok(());
        }
        if self.slots[self.current].used + len as u64 > SLOT {
            self.flush()?;
        }
        let slot = &mut self.slots[self.current];
        let at = slot.used as usize;
        let Some(bytes) = slot.host.bytes_mut().get_mut(at..at + len) else {
            return Err(
                BackendError::Device(format!("{len} bytes are more than the staging ring takes at once")).into()
            );
        };
        fill(bytes)?;
        let from = slot.host.exact(slot.used, len as u64)?;
        slot.copies.push(Command::Copy { from, to: to.exact(offset, len as u64)? });
        slot.used = (slot.used + len as u64).next_multiple_of(16);
        Ok(())
    }

    /// Submits what is staged and turns to the next slot, once that is free.
    fn flush(&mut self) -> Result<(), BackendError> {
        let slot = &mut self.slots[self.current];
        if !slot.copies.is_empty() {
            let recorded = record(&self.gpu, &slot.copies)?;
            self.gpu.submit(&recorded)?;
            slot.pending = Some(recorded);
            slot.copies.clear();
        }
        self.current = (self.current + 1) % SLOTS;
        self.reclaim(self.current)
    }

    fn reclaim(&mut self, slot: usize) -> Result<(), BackendError> {
        let slot = &mut self.slots[slot];
        if let Some(recorded) = &slot.pending {
            self.gpu.wait(recorded)?;
        }
        slot.pending = None;
        slot.used = 0;
        Ok(())
    }

    /// Waits until everything has arrived.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn finish(&mut self) -> Result<(), BackendError> {
        for _ in 0..SLOTS {
            self.flush()?;
        }
        Ok(())
    }

    /// The bytes of part of a device buffer.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn read(&mut self, from: &DeviceBuffer, offset: u64, out: &mut [u8]) -> Result<(), BackendError> {
        self.finish()?;
        for (i, chunk) in out.chunks_mut(SLOT as usize).enumerate() {
            let len = chunk.len() as u64;
            let slot = &mut self.slots[self.current];
            let copy = Command::Copy { from: from.exact(offset + i as u64 * SLOT, len)?, to: slot.host.exact(0, len)? };
            let recorded = record(&self.gpu, &[copy])?;
            self.gpu.run(&recorded)?;
            chunk.copy_from_slice(&slot.host.bytes()[..chunk.len()]);
        }
        Ok(())
    }
}
