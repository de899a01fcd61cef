//! The way of the log to standard error. One thread writes, so that a pipe that nobody reads holds
//! up that thread alone.
//!
//! A line that cannot be written (its reader is gone, the disk is full) or that finds no room is
//! dropped and counted. Whoever logs waits a moment for its line, so that what was answered is in
//! the log already; while the thread stands still nobody waits.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::{Background, keep_thread, panic_point};

/// From here on a thread of its own writes what is logged. Until then, and in commands, whoever
/// logs writes.
///
/// # Errors
///
/// No thread can be started.
pub(crate) fn start() -> io::Result<()> {
    let queue = QUEUE.get_or_init(Queue::default);
    keep_thread(Background::LogWriter, || queue.write_to(&mut stderr())).map(drop)
}

/// Writes a line, which brings its own line end.
pub(crate) fn line(text: &[u8]) {
    match QUEUE.get() {
        Some(queue) => queue.push(text),
        None => put(&mut stderr(), text),
    }
}

/// Waits until all that was logged is written, but not for long.
pub(crate) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_PATIENCE);
    }
}

/// How many lines were not written.
pub(crate) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Whether a person reads the log.
pub(crate) fn is_terminal() -> bool {
    stderr().is_terminal()
}

/// Where the log's subscriber writes its lines.
pub(crate) fn writer() -> impl Write {
    struct Line;
    impl Write for Line {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            line(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    Line
}

/// Lines that wait for the thread.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// How many lines came in, and with how many of them the thread is done.
    came: u64,
    done: u64,
    /// Somebody waited in vain for a line; since then the thread is done with none.
    stalled: bool,
}

impl Queue {
    fn push(&self, text: &[u8]) {
        let mut state = self.state();
        if state.bytes + text.len() > MAX_BYTES {
            drop_one();
            return;
        }
        state.bytes += text.len();
        state.lines.push_back(text.to_vec());
        state.came += 1;
        let mine = state.came;
        self.filled.notify_one();
        if !state.stalled {
            let mut state = self.wait(state, mine, PATIENCE);
            state.stalled |= state.done < mine;
        }
    }

    fn flush(&self, patience: Duration) {
        let state = self.state();
        let last = state.came;
        drop(self.wait(state, last, patience));
    }

    /// Waits until the thread is done with line number `last`, or for as long as `patience`.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        last: u64,
        patience: Duration,
    ) -> MutexGuard<'a, State> {
        let not_yet = |state: &mut State| state.done < last;
        let waited = self.written.wait_timeout_while(state, patience, not_yet);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The thread.
    fn write_to(&self, out: &mut impl Write) {
        loop {
            let line = {
                let empty = |state: &mut State| state.lines.is_empty();
                let state = self.filled.wait_while(self.state(), empty);
                let mut state = state.unwrap_or_else(PoisonError::into_inner);
                let line = state.lines.pop_front().unwrap_or_default();
                state.bytes -= line.len();
                line
            };
            let done = Done(self);
            panic_point!("log::write");
            put(out, &line);
            drop(done);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropped, it says that the thread is done with one more line, written or not.
struct Done<'a>(&'a Queue);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop_one();
        }
        let mut state = self.0.state();
        state.done += 1;
        state.stalled = false;
        drop(state);
        self.0.written.notify_all();
    }
}

fn put(out: &mut impl Write, mut text: &[u8]) {
    while !text.is_empty() {
        match out.write(text) {
            Ok(0) => return drop_one(),
            Ok(length) => text = &text[length..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that has the same terminal or pipe made it so.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(AGAIN);
            }
            Err(_gone_or_full) => return drop_one(),
        }
    }
}

fn drop_one() {
    DROPPED.fetch_add(1, Ordering::Relaxed);
}

#[expect(clippy::disallowed_methods, reason = "the one owner of standard error")]
fn stderr() -> io::Stderr {
    io::stderr()
}

static QUEUE: OnceLock<Queue> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// What waits at most: 1 MiB of lines.
const MAX_BYTES: usize = 1 << 20;
/// How long whoever logs waits for its line, once, before nobody waits any more.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long the end of the process waits for the log.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);
/// Before the next try to write what would block.
const AGAIN: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

    use super::*;

    /// Takes each line when it is told to, as a pipe that somebody reads at times.
    struct Pipe {
        may: Receiver<io::Result<()>>,
        took: Sender<Vec<u8>>,
    }

    impl Write for Pipe {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.may
                .recv()
                .map_err(|_gone| io::ErrorKind::BrokenPipe)??;
            self.took.send(text.to_vec()).unwrap();
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn begin() -> (&'static Queue, Sender<io::Result<()>>, Receiver<Vec<u8>>) {
        let queue: &'static Queue = Box::leak(Box::default());
        let (open, may) = channel();
        let (took, taken) = channel();
        let mut pipe = Pipe { may, took };
        drop(thread::spawn(move || queue.write_to(&mut pipe)));
        (queue, open, taken)
    }

    #[test]
    fn a_line_is_written_before_whoever_logs_goes_on() {
        let (queue, open, taken) = begin();
        for text in ["one\n", "two\n"] {
            open.send(Ok(())).unwrap();
            queue.push(text.as_bytes());
            assert_eq!(taken.recv().unwrap(), text.as_bytes());
        }
        assert_eq!(queue.state().done, 2);
    }

    #[test]
    fn while_nobody_reads_lines_wait_for_room_and_the_rest_is_dropped() {
        let (queue, open, taken) = begin();
        let line = vec![b'x'; MAX_BYTES / 4];
        // The thread holds the first; four more fill the room.
        for _line in 0..5 {
            queue.push(&line);
        }
        assert!(queue.state().stalled, "only the first was waited for");
        let came = queue.state().came;
        assert_eq!(came, 5);
        let before = dropped();
        queue.push(&line);
        assert_eq!(queue.state().came, came);
        assert!(dropped() > before);
        for _line in 0..5 {
            open.send(Ok(())).unwrap();
        }
        assert_eq!((0..5).filter_map(|_| taken.recv().ok()).count(), 5);
        queue.flush(FLUSH_PATIENCE);
        assert!(!queue.state().stalled);
    }

    #[test]
    fn a_line_that_cannot_be_written_is_dropped_and_the_next_is_tried() {
        let (queue, open, taken) = begin();
        let before = dropped();
        open.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        queue.push(b"lost\n");
        assert!(dropped() > before);
        open.send(Ok(())).unwrap();
        queue.push(b"told\n");
        assert_eq!(taken.recv().unwrap(), b"told\n");
        // Its reader is gone.
        drop(open);
        queue.push(b"lost\n");
        assert_eq!(queue.state().done, 3);
    }
}
