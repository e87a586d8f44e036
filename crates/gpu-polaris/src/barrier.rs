//! Where barriers go: one pass over what commands read and write, with no Vulkan in it.

use std::ops::Range;

/// Bytes of some memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Which memory; different numbers never overlap.
    pub(crate) space: u32,
    pub(crate) bytes: Range<u64>,
}

impl Span {
    fn overlaps(&self, other: &Span) -> bool {
        self.space == other.space && self.bytes.start < other.bytes.end && other.bytes.start < self.bytes.end
    }
}

/// What a command touches.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    pub(crate) reads: Vec<Span>,
    pub(crate) writes: Vec<Span>,
}

/// For each command whether a barrier stands before it: when it reads what was written since the last barrier, or writes
/// what was read or written since.
pub(crate) fn barriers<'a>(commands: impl Iterator<Item = &'a Touched>) -> Vec<bool> {
    let mut since: Vec<&Touched> = Vec::new();
    commands
        .map(|command| {
            let hit = |spans: &[Span], others: &[Span]| spans.iter().any(|a| others.iter().any(|b| a.overlaps(b)));
            let conflict = since.iter().any(|earlier| {
                hit(&command.reads, &earlier.writes)
                    || hit(&command.writes, &earlier.writes)
                    || hit(&command.writes, &earlier.reads)
            });
            if conflict {
                since.clear();
            }
            since.push(command);
            conflict
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(space: u32, bytes: Range<u64>) -> Span {
        Span { space, bytes }
    }

    fn touched(reads: &[Span], writes: &[Span]) -> Touched {
        Touched { reads: reads.to_vec(), writes: writes.to_vec() }
    }

    #[test]
    fn barriers_stand_where_memory_is_shared_and_one_side_writes() {
        let a = || span(0, 0..16);
        let b = || span(0, 16..32);
        let other = || span(1, 0..16);
        let commands = [
            touched(&[], &[a()]),           // writes a
            touched(&[], &[b()]),           // beside it
            touched(&[a()], &[other()]),    // reads a: barrier
            touched(&[b()], &[]),           // b was written before that barrier
            touched(&[other()], &[]),       // reads what came after it: barrier
            touched(&[], &[a()]),           // nobody touched a since
            touched(&[], &[a()]),           // write after write: barrier
            touched(&[a()], &[a()]),        // in place: barrier
            touched(&[span(0, 8..9)], &[]), // a byte of it: barrier
            touched(&[], &[span(0, 0..9)]), // write after read: barrier
        ];
        let found = barriers(commands.iter());
        assert_eq!(found, [false, false, true, false, true, false, true, true, true, true]);
    }
}
