//! Cards, as far as a prediction needs to know them.

use crate::compile::Target;
use crate::vk::{DeviceKind, Limits};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A graphics card of GCN4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// The name on the command line.
    pub name: &'static str,
    /// The name on the box.
    pub title: &'static str,
    /// Compute units, each of four SIMDs.
    pub compute_units: u32,
    /// Clock that its maker guarantees, MHz.
    pub base_mhz: f64,
    /// Clock that it reaches while power and heat allow, MHz.
    pub boost_mhz: f64,
    /// Bandwidth of its memory, GB/s.
    pub bandwidth: f64,
    /// Bytes of its memory; boards differ, this is the usual one.
    pub memory: u64,
}

/// Bytes of memory that lie in a heap of their own, visible to the host, which weights do not go to.
const VISIBLE: u64 = 256 * MIB;

/// Bytes a second over PCI Express 3.0 x16, less its protocol.
const UPLOAD: f64 = 12e9;

/// Polaris 10, 20 and 30.
const CARDS: [Card; 6] = [
    card("rx470", "Radeon RX 470", 32, 926.0, 1206.0, 211.0, 4),
    card("rx480", "Radeon RX 480", 36, 1120.0, 1266.0, 256.0, 8),
    card("rx570", "Radeon RX 570", 32, 1168.0, 1244.0, 224.0, 4),
    card("rx580", "Radeon RX 580", 36, 1257.0, 1340.0, 256.0, 8),
    card("rx580-2048sp", "Radeon RX 580 2048SP", 32, 1168.0, 1284.0, 224.0, 8),
    card("rx590", "Radeon RX 590", 36, 1469.0, 1545.0, 256.0, 8),
];

const fn card(
    name: &'static str,
    title: &'static str,
    compute_units: u32,
    base_mhz: f64,
    boost_mhz: f64,
    bandwidth: f64,
    gib: u64,
) -> Card {
    Card { name, title, compute_units, base_mhz, boost_mhz, bandwidth, memory: gib * GIB }
}

impl Card {
    /// All that are known.
    #[must_use]
    pub fn all() -> &'static [Card] {
        &CARDS
    }

    /// The card of that name, as `rx580`, `RX 580` or `rx-580`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Card> {
        let plain = |text: &str| -> String {
            text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
        };
        let asked = plain(name);
        CARDS.into_iter().find(|card| plain(card.name) == asked || plain(card.title) == asked)
    }

    /// The same card with other memory.
    #[must_use]
    pub fn with_memory(mut self, bytes: u64) -> Card {
        self.memory = bytes;
        self
    }

    /// Vector units: a wave keeps one busy.
    #[must_use]
    pub fn simds(&self) -> f64 {
        f64::from(self.compute_units * 4)
    }

    /// Bytes that weights, states and intermediate results may take. A desktop on the card takes some of them.
    #[must_use]
    pub fn usable(&self) -> u64 {
        self.memory.saturating_sub(VISIBLE)
    }

    /// Seconds that so many bytes of weights need over the bus.
    #[must_use]
    pub fn upload_seconds(&self, bytes: u64) -> f64 {
        bytes as f64 / UPLOAD
    }

    /// What the compiler is told about it: the limits that RADV gives these cards.
    pub(super) fn target(&self) -> Target {
        let limits = Limits {
            subgroup_size: 64,
            max_range: u64::from(u32::MAX),
            max_allocation: 4 * GIB - 4,
            offset_alignment: 256,
            max_groups: 65_535,
            shared_memory: 32 * 1024,
            memory: self.usable(),
        };
        Target { limits, kind: DeviceKind::Discrete }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_found_however_they_are_spelled() {
        for name in ["rx580", "RX 580", "Rx-580", "Radeon RX 580"] {
            assert_eq!(Card::by_name(name).map(|card| card.name), Some("rx580"), "{name}");
        }
        assert_eq!(Card::by_name("rx580 2048SP").map(|card| card.compute_units), Some(32));
        assert_eq!(Card::by_name("rx"), None);
        assert_eq!(Card::by_name(""), None);
    }
}
