//! The thread pool: a program runs as one parallel region, with barriers between its steps.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a waiting thread looks before it lets others run: some tens of microseconds.
const SPINS: u32 = 2_000;
/// How often a worker looks for the next region before it sleeps: decode steps follow each other closely.
const IDLE_SPINS: u32 = 50_000;
/// The same where the last region was long in coming: who waits for the processor, as other pools do, shall have it.
const SLOW_IDLE_SPINS: u32 = 500;
/// A pause after which the next region is not worth waiting for, either.
const LONG_PAUSE: Duration = Duration::from_millis(1);

/// A barrier that spins, for threads that arrive within microseconds of each other.
struct Barrier {
    threads: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
}

impl Barrier {
    fn wait(&self) {
        if self.threads == 1 {
            return;
        }
        let generation = self.generation.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.store(generation.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.generation.load(Ordering::Acquire) == generation {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

/// What a region's function sees.
#[derive(Clone, Copy)]
pub struct Worker<'a> {
    /// This thread's number, from 0.
    pub index: usize,
    /// Threads in the region.
    pub count: usize,
    barrier: &'a Barrier,
}

impl Worker<'_> {
    /// Waits until every thread of the region is here. Everything written before is visible after.
    pub fn barrier(&self) {
        self.barrier.wait();
    }

    /// This thread's share of `units`, contiguous.
    #[must_use]
    pub fn share(&self, units: usize) -> std::ops::Range<usize> {
        units * self.index / self.count..units * (self.index + 1) / self.count
    }
}

/// The region that workers are to run: a function that outlives it, because [`ThreadPool::run`] waits for all of them.
#[derive(Clone, Copy)]
struct Region(*const (dyn Fn(Worker<'_>) + Sync));

// SAFETY: the function is Sync, and `run` keeps it alive until every worker is done with it.
unsafe impl Send for Region {}

struct Shared {
    barrier: Barrier,
    region: Mutex<(usize, Option<Region>)>,
    wake: Condvar,
    /// The number of the newest region; workers spin on it before they sleep.
    newest: AtomicUsize,
    running: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// A fixed number of threads, the caller's being one of them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One region at a time.
    turn: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ThreadPool {
    /// A pool of `threads` threads (at least 1). Threads that the system refuses are done without.
    #[must_use]
    pub fn new(threads: usize) -> ThreadPool {
        let shared = |threads| {
            Arc::new(Shared {
                barrier: Barrier { threads, arrived: AtomicUsize::new(0), generation: AtomicUsize::new(0) },
                region: Mutex::new((0, None)),
                wake: Condvar::new(),
                newest: AtomicUsize::new(0),
                running: AtomicUsize::new(0),
                panicked: AtomicBool::new(false),
                stop: AtomicBool::new(false),
            })
        };
        let mut threads = threads;
        while threads > 1 {
            let state = shared(threads);
            let mut workers = Vec::new();
            for index in 1..threads {
                let own = state.clone();
                let spawned = std::thread::Builder::new().name(format!("cpu-{index}")).spawn(move || work(&own, index));
                match spawned {
                    Ok(worker) => workers.push(worker),
                    Err(_) => break,
                }
            }
            let pool = ThreadPool { shared: state, workers, turn: Mutex::new(()) };
            if pool.workers.len() + 1 == threads {
                return pool;
            }
            threads = pool.workers.len() + 1;
        }
        ThreadPool { shared: shared(1), workers: Vec::new(), turn: Mutex::new(()) }
    }

    /// Threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs a function on the caller's thread, as a region of one.
    pub fn run_alone(&self, region: &(dyn Fn(Worker<'_>) + Sync)) {
        let barrier = Barrier { threads: 1, arrived: AtomicUsize::new(0), generation: AtomicUsize::new(0) };
        region(Worker { index: 0, count: 1, barrier: &barrier });
    }

    /// Runs a function on every thread at the same time and waits for all of them.
    ///
    /// # Panics
    /// When the function panics on a worker. (A panic on some threads only, with a barrier ahead, would hang: kernels do not panic.)
    pub fn run(&self, region: &(dyn Fn(Worker<'_>) + Sync)) {
        let shared = &*self.shared;
        let this = std::ptr::from_ref(shared);
        if INSIDE.get() == this {
            // A user's function called from a region: the other threads are busy with that.
            return self.run_alone(region);
        }
        let _turn = lock(&self.turn);
        shared.panicked.store(false, Ordering::Release);
        let count = self.threads();
        if count > 1 {
            // SAFETY: only the lifetime changes; this function does not return before `running` is 0, when no worker holds the pointer any more.
            let region = Region(unsafe {
                std::mem::transmute::<*const (dyn Fn(Worker<'_>) + Sync), *const (dyn Fn(Worker<'_>) + Sync)>(region)
            });
            shared.running.store(count - 1, Ordering::Relaxed);
            let mut slot = lock(&shared.region);
            slot.0 = slot.0.wrapping_add(1);
            slot.1 = Some(region);
            shared.newest.store(slot.0, Ordering::Release);
            drop(slot);
            shared.wake.notify_all();
        }
        let finish = Finish(shared);
        let inside = Inside(INSIDE.replace(this));
        region(Worker { index: 0, count, barrier: &shared.barrier });
        drop(inside);
        drop(finish);
        assert!(!shared.panicked.swap(false, Ordering::AcqRel), "a kernel panicked on another thread");
    }
}

thread_local! {
    /// The pool whose region this thread is in.
    static INSIDE: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

/// Sets [`INSIDE`] back, also when the region panics.
struct Inside(*const Shared);

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.0);
    }
}

/// Waits for the workers, also when the caller's own part panics.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let mut spins = 0;
        while self.0.running.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

fn work(shared: &Shared, index: usize) {
    INSIDE.set(shared);
    let mut seen = 0;
    let mut most_spins = SLOW_IDLE_SPINS;
    loop {
        let idle_since = Instant::now();
        let mut spins = 0;
        while shared.newest.load(Ordering::Acquire) == seen && spins < most_spins {
            spins += 1;
            std::hint::spin_loop();
        }
        let mut slot = lock(&shared.region);
        while slot.0 == seen && !shared.stop.load(Ordering::Acquire) {
            slot = shared.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
        most_spins = if idle_since.elapsed() < LONG_PAUSE { IDLE_SPINS } else { SLOW_IDLE_SPINS };
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        seen = slot.0;
        let region = slot.1;
        drop(slot);
        let Some(Region(region)) = region else { continue };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // SAFETY: `run` keeps the function alive until `running` is 0, which this thread counts down afterwards.
            let region = unsafe { &*region };
            region(Worker { index, count: shared.barrier.threads, barrier: &shared.barrier });
        }));
        if result.is_err() {
            shared.panicked.store(true, Ordering::Release);
        }
        shared.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        {
            let mut slot = lock(&self.shared.region);
            slot.0 = slot.0.wrapping_add(1);
            slot.1 = None;
            self.shared.newest.store(slot.0, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_and_barriers_order_their_writes() {
        for threads in [1, 2, 3] {
            let pool = ThreadPool::new(threads);
            let cells: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..200 {
                pool.run(&|worker| {
                    cells[worker.index].store(round, Ordering::Relaxed);
                    worker.barrier();
                    for cell in &cells {
                        assert_eq!(cell.load(Ordering::Relaxed), round);
                    }
                    worker.barrier();
                });
            }
        }
    }

    #[test]
    fn a_region_inside_of_a_region_runs_on_its_thread_alone() {
        let pool = ThreadPool::new(3);
        let ran = AtomicUsize::new(0);
        for _ in 0..20 {
            pool.run(&|_| {
                pool.run(&|worker| {
                    worker.barrier();
                    assert_eq!((worker.index, worker.share(5)), (0, 0..5));
                    ran.fetch_add(1, Ordering::Relaxed);
                });
            });
        }
        assert_eq!(ran.into_inner(), 60);
    }

    #[test]
    fn shares_cover_all_units_once() {
        let pool = ThreadPool::new(3);
        let units: Vec<AtomicUsize> = (0..17).map(|_| AtomicUsize::new(0)).collect();
        pool.run(&|worker| {
            worker.share(17).for_each(|unit| assert_eq!(units[unit].fetch_add(1, Ordering::Relaxed), 0))
        });
        assert!(units.iter().all(|unit| unit.load(Ordering::Relaxed) == 1));
    }
}
