//! The one thread pool: [`Pool::run`] hands out item numbers, nothing else.
//!
//! Items go to whichever worker is free, through one atomic counter, so uneven items balance. A
//! result may therefore depend on the item number only; the worker number is for choosing private
//! scratch. Running allocates nothing. Workers wait briefly in a spin loop, because steps of a plan
//! follow each other closely, then sleep.
//!
//! Invariant: no worker touches a job after the `run` that published it has returned. Workers
//! enter and leave a job by counting themselves in `State::active` under the lock, and the caller
//! leaves only when the job is closed and the count is zero.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Spin-loop turns before a waiting thread sleeps: 0.02 to 0.2 ms, by CPU.
const SPINS: u32 = 4000;

thread_local! {
    /// Which worker this thread is while it runs an item, so that nested runs stay inline.
    static WORKER: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A fixed set of threads.
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    threads: usize,
    /// One run at a time: concurrent callers queue here.
    caller: Mutex<()>,
}

/// The job of the current run: a lifetime-erased `&dyn Fn(item, worker)`.
#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(usize, usize) + Sync),
    n_items: usize,
}

// SAFETY: the pointee is Sync, and `Pool::run` keeps it alive until every worker has left the job.
unsafe impl Send for Job {}

struct State {
    job: Option<Job>,
    /// Workers inside the job.
    active: usize,
    shutdown: bool,
    panic: Option<Box<dyn Any + Send>>,
}

struct Shared {
    state: Mutex<State>,
    /// Signaled when a job is published and at shutdown.
    published: Condvar,
    /// Signaled when the last active worker leaves.
    left: Condvar,
    /// Counts published jobs; spinning workers watch it without the lock.
    epoch: AtomicU64,
    /// Workers inside the job, for the caller's spin loop; the lock decides.
    active_hint: AtomicUsize,
    next_item: AtomicUsize,
    panicked: AtomicBool,
}

impl Shared {
    /// A panic never unwinds while the lock is held, so poison carries no information.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes items until none is left; keeps the first panic.
    fn work(&self, job: Job, worker: usize) {
        let previous = WORKER.replace(Some(worker));
        // SAFETY: the caller of `work` counts as active, so `Pool::run` has not returned.
        let body = unsafe { &*job.body };
        let result = catch_unwind(AssertUnwindSafe(|| {
            while !self.panicked.load(Ordering::Relaxed) {
                let item = self.next_item.fetch_add(1, Ordering::Relaxed);
                if item >= job.n_items {
                    break;
                }
                body(item, worker);
            }
        }));
        WORKER.set(previous);
        if let Err(panic) = result {
            self.panicked.store(true, Ordering::Relaxed);
            self.lock().panic.get_or_insert(panic);
        }
    }

    fn worker_loop(&self, worker: usize) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.epoch.load(Ordering::Acquire) == seen && spins < SPINS {
                std::hint::spin_loop();
                spins += 1;
            }
            let mut state = self.lock();
            while self.epoch.load(Ordering::Relaxed) == seen && !state.shutdown {
                state = self.published.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.shutdown {
                return;
            }
            seen = self.epoch.load(Ordering::Relaxed);
            let Some(job) = state.job else { continue };
            state.active += 1;
            self.active_hint.store(state.active, Ordering::Relaxed);
            drop(state);
            self.work(job, worker);
            let mut state = self.lock();
            state.active -= 1;
            self.active_hint.store(state.active, Ordering::Release);
            if state.active == 0 {
                self.left.notify_one();
            }
        }
    }
}

impl Pool {
    /// Starts `threads - 1` threads; the caller of [`Pool::run`] is the remaining one. Zero counts
    /// as one.
    ///
    /// # Errors
    /// The operating system's, if it refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State { job: None, active: 0, shutdown: false, panic: None }),
            published: Condvar::new(),
            left: Condvar::new(),
            epoch: AtomicU64::new(0),
            active_hint: AtomicUsize::new(0),
            next_item: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        let mut pool = Self { shared, handles: Vec::new(), threads, caller: Mutex::new(()) };
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let handle = std::thread::Builder::new()
                .name(format!("kernel-{worker}"))
                .spawn(move || shared.worker_loop(worker))?;
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// Threads that run items, the caller's included; worker numbers are below it.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `body(item, worker)` once for each `item` in `0..n_items`, in any order, on any
    /// worker, and returns when all are done. No two calls at one time have the same `worker`.
    ///
    /// Inside an item of any pool it runs all items on this thread, in order, as the same worker.
    ///
    /// # Panics
    /// With the first panic of an item, after all workers have stopped; other items may not run.
    pub fn run(&self, n_items: usize, body: &(dyn Fn(usize, usize) + Sync)) {
        if let Some(worker) = WORKER.get() {
            for item in 0..n_items {
                body(item, worker);
            }
            return;
        }
        if n_items == 0 {
            return;
        }
        let turn = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; the wait below outlives every use.
        let body: *const (dyn Fn(usize, usize) + Sync) = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize, usize) + Sync + '_),
                *const (dyn Fn(usize, usize) + Sync + 'static),
            >(body)
        };
        let job = Job { body, n_items };
        shared.next_item.store(0, Ordering::Relaxed);
        shared.panicked.store(false, Ordering::Relaxed);
        let wake = self.threads > 1 && n_items > 1;
        if wake {
            let mut state = shared.lock();
            state.job = Some(job);
            // Under the lock, so that no worker falls asleep between its check and the signal.
            shared.epoch.fetch_add(1, Ordering::Release);
            drop(state);
            shared.published.notify_all();
        }
        shared.work(job, 0);
        // Close the job: a worker that wakes late finds none.
        let mut state = shared.lock();
        state.job = None;
        if state.active > 0 {
            drop(state);
            let mut spins = 0;
            while shared.active_hint.load(Ordering::Acquire) > 0 && spins < SPINS {
                std::hint::spin_loop();
                spins += 1;
            }
            state = shared.lock();
            while state.active > 0 {
                state = shared.left.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        let panic = state.panic.take();
        drop(state);
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.shutdown = true;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        drop(state);
        self.shared.published.notify_all();
        for handle in self.handles.drain(..) {
            // A worker's panic was caught and handed to a caller; joining cannot report more.
            drop(handle.join());
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_every_item_once() {
        for threads in 1..=5 {
            let pool = Pool::new(threads).unwrap();
            for n_items in [0, 1, 2, 3, 7, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..n_items).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_items, &|item, worker| {
                    assert!(worker < threads);
                    counts[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_runs_see_their_own_data() {
        let pool = Pool::new(4).unwrap();
        for round in 0..20_000usize {
            let n_items = 1 + round % 7;
            let sum = AtomicUsize::new(0);
            pool.run(n_items, &|item, _| {
                sum.fetch_add(round + item, Ordering::Relaxed);
            });
            let expected: usize = (0..n_items).map(|item| round + item).sum();
            assert_eq!(sum.load(Ordering::Relaxed), expected);
        }
    }

    #[test]
    fn workers_never_share_a_number() {
        let pool = Pool::new(3).unwrap();
        let busy: Vec<AtomicBool> = (0..3).map(|_| AtomicBool::new(false)).collect();
        pool.run(2000, &|_, worker| {
            assert!(!busy[worker].swap(true, Ordering::SeqCst));
            std::hint::spin_loop();
            busy[worker].store(false, Ordering::SeqCst);
        });
    }

    #[test]
    fn nested_runs_stay_on_the_same_worker() {
        let pool = Pool::new(3).unwrap();
        let total = AtomicUsize::new(0);
        pool.run(20, &|_, outer| {
            pool.run(10, &|_, inner| {
                assert_eq!(inner, outer);
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.load(Ordering::Relaxed), 200);
    }

    #[test]
    fn panics_reach_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..50 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(64, &|item, _| assert!(item != 17, "item {item}"));
            }));
            let message = *result.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, "item 17");
            let count = AtomicUsize::new(0);
            pool.run(64, &|_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.load(Ordering::Relaxed), 64);
        }
    }

    #[test]
    fn concurrent_callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let count = AtomicUsize::new(0);
                        pool.run(5, &|_, _| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                        assert_eq!(count.load(Ordering::Relaxed), 5);
                    }
                });
            }
        });
    }
}
