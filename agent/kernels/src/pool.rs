//! Worker threads that sleep when there is nothing to do.
//!
//! Invariants: a job ends when its work is taken and nobody is inside it; a worker that comes late
//! finds no job, so that a busy machine slows a job but never stalls it. A thread that waits looks for
//! [`SPIN_MAX`] whether it still has to, and then sleeps: the next product of a layer is nearer than that,
//! and waking a thread costs more than a product. A job is never touched after [`Pool::run`] returns.

use std::hint::spin_loop;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Most threads of a pool, its caller included.
const THREADS_MAX: usize = 256;
/// Longest that a thread looks before it sleeps: what a thread loses at each wait if somebody else needs its processor.
const SPIN_MAX: Duration = Duration::from_micros(50);
/// Looks between two readings of the clock.
const LOOKS: u32 = 16;

/// A caller and its workers.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    start: Condvar,
    idle: Condvar,
    /// Which job is or was the last. Changed under the lock, like `inside`; read without it to wait for a change.
    generation: AtomicU64,
    /// Workers inside the job.
    inside: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    job: Option<Job>,
    /// Workers that sleep.
    sleeping: usize,
    /// Whether the caller sleeps until nobody is inside.
    ending: bool,
    panicked: bool,
    stop: bool,
}

/// A job with its lifetime erased.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn() + Sync));

// SAFETY: the closure behind the pointer is `Sync`, so any thread may call it; that it is still alive
// is the invariant of `Pool::run`.
unsafe impl Send for Job {}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Pool {
    /// Starts `threads - 1` workers; the caller of [`Self::run`] is the last one.
    ///
    /// # Errors
    /// If the system starts no more threads.
    pub fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut pool = Self { shared, workers: Vec::new() };
        for i in 1..threads.clamp(1, THREADS_MAX) {
            let shared = Arc::clone(&pool.shared);
            let name = format!("compute-{i}");
            pool.workers.push(thread::Builder::new().name(name).spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// Threads that work, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Applies `work` to every item, on all threads, in no particular order; returns when all are done.
    ///
    /// # Panics
    /// If `work` does.
    pub fn run<T: Send>(&mut self, items: Vec<T>, work: impl Fn(T) + Sync) {
        if self.workers.is_empty() || items.len() < 2 {
            items.into_iter().for_each(work);
            return;
        }
        let items = Mutex::new(items.into_iter());
        let job = || {
            while let Some(item) = next(&items) {
                work(item);
            }
        };
        self.share(&job);
    }

    fn share(&mut self, job: &(dyn Fn() + Sync)) {
        let pointer: *const (dyn Fn() + Sync + '_) = job;
        // SAFETY: only the lifetime changes. `Ending` is dropped before this function returns or unwinds:
        // it takes the job away and waits until no worker is inside it.
        let pointer: *const (dyn Fn() + Sync) = unsafe { std::mem::transmute(pointer) };
        let mut state = self.shared.lock();
        state.job = Some(Job(pointer));
        state.panicked = false;
        self.shared.generation.fetch_add(1, Ordering::Release);
        let asleep = state.sleeping > 0;
        drop(state);
        if asleep {
            self.shared.start.notify_all();
        }
        let ending = Ending(&self.shared);
        job();
        drop(ending);
        assert!(!self.shared.lock().panicked, "a worker panicked");
    }
}

fn next<T>(items: &Mutex<std::vec::IntoIter<T>>) -> Option<T> {
    items.lock().unwrap_or_else(PoisonError::into_inner).next()
}

/// Closes the job and waits for the workers inside it.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.lock().job = None;
        let inside = || self.0.inside.load(Ordering::Acquire) > 0;
        if !look(|| !inside()) {
            let mut state = self.0.lock();
            while inside() {
                state.ending = true;
                state = self.0.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.ending = false;
        }
    }
}

/// Waits a short while for `done`; says whether it came.
fn look(done: impl Fn() -> bool) -> bool {
    let mut started = None;
    loop {
        for _ in 0..LOOKS {
            if done() {
                return true;
            }
            spin_loop();
        }
        if started.get_or_insert_with(Instant::now).elapsed() >= SPIN_MAX {
            return false;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent at every unlock, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut seen = 0;
        let mut state = self.lock();
        while !state.stop {
            let generation = self.generation.load(Ordering::Acquire);
            if let Some(Job(job)) = state.job.filter(|_| generation != seen) {
                seen = generation;
                self.inside.fetch_add(1, Ordering::Relaxed);
                drop(state);
                let leaving = Leaving(self);
                // SAFETY: `inside` was raised under the lock while the job was there, so `Ending`, which takes
                // the job away under the lock and then reads `inside`, waits for this call.
                unsafe { (*job)() };
                drop(leaving);
                look(|| self.generation.load(Ordering::Acquire) != seen);
                state = self.lock();
            } else {
                state.sleeping += 1;
                state = self.start.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping -= 1;
            }
        }
    }
}

/// Leaves a job, even by a panic.
struct Leaving<'a>(&'a Shared);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.panicked |= thread::panicking();
        let last = self.0.inside.fetch_sub(1, Ordering::Release) == 1;
        if last && state.ending {
            self.0.idle.notify_one();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.start.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked was reported by `share`.
            drop(worker.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn every_item_is_worked_on_once() {
        let mut pool = Pool::new(3).unwrap();
        for round in 0..20_000 {
            let mut out = vec![0_usize; 17];
            pool.run(out.iter_mut().enumerate().collect(), |(i, out)| *out += i + round);
            assert!(out.iter().enumerate().all(|(i, &v)| v == i + round), "{round}: {out:?}");
        }
    }

    #[test]
    fn a_panic_in_the_work_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(2).unwrap();
        for bad in 0..8 {
            let work = |i: usize| assert!(i != bad, "wanted");
            let run = catch_unwind(AssertUnwindSafe(|| pool.run((0..8).collect(), work)));
            assert!(run.is_err());
            // A dead worker is missed, not waited for.
            pool.run(vec![1, 2, 3], |i| assert!(i > 0));
        }
    }

    #[test]
    fn one_thread_needs_no_worker() {
        let mut pool = Pool::new(1).unwrap();
        assert_eq!(pool.threads(), 1);
        let mut out = [0; 4];
        pool.run(out.iter_mut().collect(), |o| *o = 1);
        assert_eq!(out, [1; 4]);
    }
}
