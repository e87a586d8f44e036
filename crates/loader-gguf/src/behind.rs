//! Bytes that a thread of its own writes, while the next ones are made.

use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

/// Bytes of a piece, and how many pieces may wait.
const PIECE: usize = 1 << 20;
const WAITING: usize = 8;

/// Writes to `file` what `make` writes, in order. What keeps bytes from being written (told by `failed`) comes before what `make` failed with.
pub(crate) fn write_behind<E>(
    file: &mut (impl Write + Send),
    make: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    failed: impl Fn(io::Error) -> E,
) -> Result<(), E> {
    thread::scope(|scope| {
        let (pieces, waiting) = sync_channel::<Vec<u8>>(WAITING);
        let writer = scope.spawn(move || {
            waiting.into_iter().try_for_each(|piece| file.write_all(&piece))?;
            file.flush()
        });
        let mut out = BufWriter::with_capacity(PIECE, Pieces(pieces));
        let made = make(&mut out).and_then(|()| out.flush().map_err(&failed));
        // There is nothing more to come. (What is left of a file that failed matters to nobody.)
        drop(out.into_parts());
        writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(&failed)?;
        made
    })
}

/// Sends what is written to the thread that writes.
struct Pieces(SyncSender<Vec<u8>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        self.0.send(piece.to_vec()).map_err(|_| io::Error::other("nobody writes any more"))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_in_order_whatever_their_pieces() {
        let bytes: Vec<u8> = (0..20 * PIECE + 17).map(|i| ((i * 31) >> 7) as u8).collect();
        let mut file = Vec::new();
        let made = write_behind(
            &mut file,
            |out| -> io::Result<()> {
                let mut rest = &bytes[..];
                for length in [1, 3 * PIECE + 5, PIECE, 0, 700, usize::MAX] {
                    let (now, later) = rest.split_at(length.min(rest.len()));
                    out.write_all(now)?;
                    rest = later;
                }
                Ok(())
            },
            std::convert::identity,
        );
        assert!(made.is_ok() && file == bytes);
    }

    /// A disk with room for some bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_disks_error_is_told_and_not_that_nobody_writes() {
        let fill = |out: &mut dyn Write| (0..100).try_for_each(|_| out.write_all(&[1; PIECE]));
        let failed = write_behind(&mut Full(3 * PIECE), fill, std::convert::identity).expect_err("a full disk");
        assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
        let failed = write_behind(
            &mut Vec::new(),
            |out| -> io::Result<()> {
                out.write_all(b"half")?;
                Err(io::Error::from(io::ErrorKind::Interrupted))
            },
            std::convert::identity,
        );
        assert_eq!(failed.expect_err("what was made").kind(), io::ErrorKind::Interrupted);
    }
}
