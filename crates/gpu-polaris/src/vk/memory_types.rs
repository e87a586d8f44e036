//! Which kind of memory is taken for what, decided on a plain table: drivers for cards that are not at hand are fixtures in its tests.

use vulkano::device::physical::PhysicalDevice;
use vulkano::memory::{MemoryHeapFlags, MemoryPropertyFlags};

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryType {
    /// The heap that it takes from.
    pub(super) heap: usize,
    /// On the device.
    pub(super) local: bool,
    /// The host can map it.
    pub(super) visible: bool,
    /// The host needs no flushes.
    pub(super) coherent: bool,
    /// The host reads it through its caches.
    pub(super) cached: bool,
    /// May only be allocated with a feature or for a purpose that is not ours: protected, lazily allocated, or coherent on the device.
    pub(super) reserved: bool,
}

/// A device's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemoryTypes {
    pub(super) types: Vec<MemoryType>,
    /// Bytes of each heap.
    pub(super) heaps: Vec<u64>,
}

impl MemoryTypes {
    /// The table of a device.
    pub(super) fn of(physical: &PhysicalDevice) -> MemoryTypes {
        let properties = physical.memory_properties();
        let reserved = MemoryPropertyFlags::PROTECTED
            | MemoryPropertyFlags::LAZILY_ALLOCATED
            | MemoryPropertyFlags::DEVICE_COHERENT
            | MemoryPropertyFlags::DEVICE_UNCACHED
            | MemoryPropertyFlags::RDMA_CAPABLE;
        // Heaps that span several devices are not asked for: no device group is made.
        let single = |heap: u32| {
            !properties.memory_heaps[heap as usize].flags.intersects(MemoryHeapFlags::MULTI_INSTANCE)
                || properties.memory_heaps[heap as usize].flags.intersects(MemoryHeapFlags::DEVICE_LOCAL)
        };
        let types = properties.memory_types.iter().map(|kind| {
            let has = |flags| kind.property_flags.contains(flags);
            MemoryType {
                heap: kind.heap_index as usize,
                local: has(MemoryPropertyFlags::DEVICE_LOCAL),
                visible: has(MemoryPropertyFlags::HOST_VISIBLE),
                coherent: has(MemoryPropertyFlags::HOST_COHERENT),
                cached: has(MemoryPropertyFlags::HOST_CACHED),
                reserved: kind.property_flags.intersects(reserved) || !single(kind.heap_index),
            }
        });
        MemoryTypes { types: types.collect(), heaps: properties.memory_heaps.iter().map(|heap| heap.size).collect() }
    }

    /// The best of the types that a resource allows (`bits`); of equals the first, as drivers list the faster ones first.
    fn best<K: Ord>(
        &self,
        bits: u32,
        fits: impl Fn(&MemoryType) -> bool,
        merit: impl Fn(&MemoryType) -> K,
    ) -> Option<u32> {
        let allowed = |index: u32| bits.checked_shr(index).is_some_and(|bits| bits & 1 == 1);
        let types = (0u32..).zip(&self.types);
        let candidates = types.filter(|(index, kind)| allowed(*index) && !kind.reserved && fits(kind));
        candidates.first_max_by_key(|(_, kind)| merit(kind)).map(|(index, _)| index)
    }

    /// For what the device reads often: its own memory, from the largest heap; memory that the host does not see before memory that it does.
    pub(super) fn weights(&self, bits: u32) -> Option<u32> {
        self.best(bits, |kind| kind.local, |kind| (self.heaps.get(kind.heap).copied().unwrap_or(0), !kind.visible))
    }

    /// For what host and device share: cached if the host reads it, and not the device's own: the part of that which the host sees is small.
    pub(super) fn host(&self, bits: u32, cached: bool) -> Option<u32> {
        self.best(bits, |kind| kind.visible && kind.coherent, |kind| (kind.cached == cached, !kind.local))
    }

    /// The heap of a type.
    pub(super) fn heap(&self, index: u32) -> Option<usize> {
        self.types.get(index as usize).map(|kind| kind.heap)
    }
}

/// The largest by a key; of equals the first.
trait FirstMax: Iterator + Sized {
    fn first_max_by_key<K: Ord>(self, key: impl Fn(&Self::Item) -> K) -> Option<Self::Item> {
        self.fold(None, |best: Option<Self::Item>, item| match best {
            Some(best) if key(&best) >= key(&item) => Some(best),
            _ => Some(item),
        })
    }
}

impl<I: Iterator> FirstMax for I {}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LOCAL: u8 = 1;
    const VISIBLE: u8 = 2;
    const CACHED: u8 = 4;
    const RESERVED: u8 = 8;

    fn table(heaps: &[u64], types: &[(usize, u8)]) -> MemoryTypes {
        let kind = |(heap, flags): &(usize, u8)| MemoryType {
            heap: *heap,
            local: flags & LOCAL != 0,
            visible: flags & VISIBLE != 0,
            coherent: flags & VISIBLE != 0,
            cached: flags & CACHED != 0,
            reserved: flags & RESERVED != 0,
        };
        MemoryTypes { types: types.iter().map(kind).collect(), heaps: heaps.to_vec() }
    }

    /// An RX 580 with 8 GiB whose memory the host sees through a window of 256 MiB, as RADV lists it.
    fn small_window() -> MemoryTypes {
        let types = [(0, LOCAL), (1, VISIBLE), (2, LOCAL | VISIBLE), (1, VISIBLE | CACHED)];
        table(&[7936 * MIB, 16_384 * MIB, 256 * MIB], &types)
    }

    /// The same card behind a resizable BAR: one heap, seen as a whole.
    fn whole_window() -> MemoryTypes {
        let types = [(0, LOCAL), (1, VISIBLE), (0, LOCAL | VISIBLE), (1, VISIBLE | CACHED)];
        table(&[8192 * MIB, 16_384 * MIB], &types)
    }

    #[test]
    fn weights_lie_in_the_large_heap_and_never_in_the_window() {
        let card = small_window();
        assert_eq!(card.weights(u32::MAX), Some(0));
        assert_eq!(card.heap(0).map(|heap| card.heaps[heap]), Some(7936 * MIB));
        assert_eq!(whole_window().weights(u32::MAX), Some(0));
    }

    #[test]
    fn staging_and_outputs_lie_in_the_hosts_memory() {
        for card in [small_window(), whole_window()] {
            assert_eq!(card.host(u32::MAX, false), Some(1));
            assert_eq!(card.host(u32::MAX, true), Some(3));
        }
    }

    #[test]
    fn a_resource_that_does_not_allow_the_best_type_takes_the_next() {
        let card = small_window();
        assert_eq!(card.weights(0b1110), Some(2));
        assert_eq!(card.weights(0b1010), None, "no device memory is allowed");
        assert_eq!(card.host(0b0110, true), Some(1));
        assert_eq!(card.host(0b0001, false), None, "nothing that the host sees is allowed");
    }

    #[test]
    fn types_that_need_features_are_never_taken() {
        // As RADV lists them where the device has them: the same again, coherent on the device.
        let mut types = vec![(0, LOCAL), (1, VISIBLE), (2, LOCAL | VISIBLE), (1, VISIBLE | CACHED)];
        types.extend(types.clone().into_iter().map(|(heap, flags)| (heap, flags | RESERVED)));
        let card = table(&[7936 * MIB, 16_384 * MIB, 256 * MIB], &types);
        assert_eq!(card.weights(u32::MAX), Some(0));
        assert_eq!(card.host(u32::MAX, false), Some(1));
        assert_eq!(card.host(u32::MAX, true), Some(3));
    }

    #[test]
    fn one_type_serves_everything_where_there_is_only_one() {
        let software = table(&[2048 * MIB], &[(0, LOCAL | VISIBLE | CACHED)]);
        assert_eq!((software.weights(1), software.host(1, false), software.host(1, true)), (Some(0), Some(0), Some(0)));
        let without = table(&[1024 * MIB], &[(0, VISIBLE)]);
        assert_eq!(without.weights(u32::MAX), None);
    }
}
