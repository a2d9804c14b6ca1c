//! Worker threads that sleep when there is nothing to do.
//!
//! Invariants: a job ends when its work is taken and nobody is inside it; a worker that wakes late
//! finds no job and sleeps again, so that a busy machine slows a job but never stalls it. No thread
//! spins. A job is never touched after [`Pool::run`] returns.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Most threads of a pool, its caller included.
const THREADS_MAX: usize = 256;

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
}

#[derive(Debug, Default)]
struct State {
    job: Option<Job>,
    generation: u64,
    inside: usize,
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
        state.generation = state.generation.wrapping_add(1);
        state.panicked = false;
        drop(state);
        self.shared.start.notify_all();
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
        let mut state = self.0.lock();
        state.job = None;
        while state.inside > 0 {
            state = self.0.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
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
            if let Some(Job(job)) = state.job.filter(|_| state.generation != seen) {
                seen = state.generation;
                state.inside += 1;
                drop(state);
                let leaving = Leaving(self);
                // SAFETY: `inside` was raised under the lock while the job was there, so `Ending` waits
                // for this call.
                unsafe { (*job)() };
                drop(leaving);
                state = self.lock();
            } else {
                state = self.start.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Leaves a job, even by a panic.
struct Leaving<'a>(&'a Shared);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.inside -= 1;
        state.panicked |= thread::panicking();
        if state.inside == 0 {
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
        for round in 0..200 {
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
