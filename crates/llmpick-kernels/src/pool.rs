//! The threads that share the work of one operation.
//!
//! A decoded token is some hundred operations of a few microseconds each, so
//! waking a sleeping thread for each of them would cost more than the work.
//! Workers therefore spin for [`SPIN`] after a job and then park. The caller
//! takes tasks like everyone else and never waits for a worker that has not
//! come: when another process has the cores, the caller does the job alone and
//! nothing stands still.

use std::{
    any::Any,
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release, SeqCst},
        },
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

/// How long an idle worker looks for the next job before it parks.
///
/// Longer than the gap between two operations of a decoder, and short enough
/// that an idle engine costs nothing that can be measured.
const SPIN: Duration = Duration::from_micros(40);

/// A fixed set of threads that run the tasks of one job at a time.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose job is running.
    turn: Mutex<()>,
}

type Work<'a> = &'a (dyn Fn(usize) + Sync);

impl Pool {
    /// A pool of `threads`, the calling one included; 0 asks for as many as the
    /// process may use (affinity and cgroup quota counted).
    ///
    /// A thread that the system refuses to start is done without.
    pub fn new(threads: usize) -> Pool {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let shared = Arc::new(Shared::default());
        let workers = (1..threads).map_while(|i| {
            let shared = Arc::clone(&shared);
            let name = format!("llmpick-kernel-{i}");
            thread::Builder::new()
                .name(name)
                .spawn(move || shared.work())
                .ok()
        });
        let workers = workers.collect();
        Pool {
            shared,
            workers,
            turn: Mutex::new(()),
        }
    }

    /// Threads that may take tasks, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` once with each number below `tasks` and returns when all calls
    /// have ended. Tasks are handed out in rising order to whoever is free.
    ///
    /// From inside a task, or while another thread has the pool, the calls are
    /// made one after the other on the calling thread.
    ///
    /// # Panics
    /// If a task panicked, with its message, after the running tasks have ended.
    pub fn run(&self, tasks: usize, work: Work<'_>) {
        let turn = if tasks > 1 && !self.workers.is_empty() {
            self.try_turn()
        } else {
            None
        };
        match turn {
            None => (0..tasks).for_each(work),
            Some(turn) => {
                self.open(tasks, work);
                self.shared.take_tasks(work, tasks);
                self.shared.close();
                let panic = self
                    .shared
                    .panic
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                drop(turn);
                if let Some(panic) = panic {
                    resume_unwind(panic);
                }
            }
        }
    }

    fn try_turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(std::sync::TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    /// Publishes a job; `close` must follow before `work` goes out of scope.
    fn open(&self, tasks: usize, work: Work<'_>) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Workers call it between entering
        // (`inside`) and leaving an open job, and `run` does not return, nor
        // unwind, before `close` has seen that nobody is inside.
        let work = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        // SAFETY: we hold the turn, the previous job was closed, and a worker
        // reads the cell only after it has seen `open` set below.
        unsafe { *shared.job.get() = Some(Job { work, tasks }) };
        shared.next.0.store(0, Relaxed);
        shared.open.store(true, SeqCst);
        shared.epoch.0.fetch_add(1, SeqCst);
        if shared.sleeping.load(SeqCst) > 0 {
            for thread in self.workers.iter().map(JoinHandle::thread) {
                Thread::unpark(thread);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.epoch.0.fetch_add(1, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches what its tasks throw, so this cannot fail.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

#[derive(Clone, Copy)]
struct Job {
    work: Work<'static>,
    tasks: usize,
}

/// Keeps a counter on a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

#[derive(Default)]
struct Shared {
    /// Rises with every job.
    epoch: Apart<AtomicU64>,
    /// The next task to hand out.
    next: Apart<AtomicUsize>,
    /// Workers that may be using the job.
    inside: Apart<AtomicUsize>,
    /// Whether the job may be entered.
    open: AtomicBool,
    /// Workers that are parked or about to park.
    sleeping: AtomicUsize,
    stop: AtomicBool,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: all fields but `job` are `Sync` by themselves; `job` is written only by
// the holder of the turn while the job is closed and nobody is inside, and read
// only by workers inside of an open job.
unsafe impl Sync for Shared {}
// SAFETY: as above; the job's closure is `Sync`, so any thread may call it.
unsafe impl Send for Shared {}

impl Shared {
    /// The life of a worker.
    fn work(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_job(seen);
            if self.stop.load(SeqCst) {
                return;
            }
            // With sequential consistency either `close` sees us inside, or we see
            // that the job is closed.
            self.inside.0.fetch_add(1, SeqCst);
            if self.open.load(SeqCst) {
                // SAFETY: the job is open and we are inside, so it was published
                // and is neither replaced nor dropped until we leave.
                if let Some(job) = unsafe { *self.job.get() } {
                    self.take_tasks(job.work, job.tasks);
                }
            }
            self.inside.0.fetch_sub(1, Release);
        }
    }

    /// Returns the number of a job that is newer than `seen`.
    fn wait_for_job(&self, seen: u64) -> u64 {
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                let epoch = self.epoch.0.load(Acquire);
                if epoch != seen {
                    return epoch;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > SPIN {
                break;
            }
        }
        // Announce first, look again, then park: a job published in between sees
        // a sleeper and unparks it, and a token makes `park` return at once.
        self.sleeping.fetch_add(1, SeqCst);
        let epoch = loop {
            let epoch = self.epoch.0.load(SeqCst);
            if epoch != seen {
                break epoch;
            }
            thread::park();
        };
        self.sleeping.fetch_sub(1, SeqCst);
        epoch
    }

    /// Runs tasks until none is left; a panic is kept for the caller.
    fn take_tasks(&self, work: Work<'_>, tasks: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.0.fetch_add(1, Relaxed);
                if task >= tasks {
                    break;
                }
                work(task);
            }
        }));
        if let Err(panic) = result {
            self.next.0.store(tasks, Relaxed);
            self.panic
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(panic);
        }
    }

    /// Shuts the door and waits until every worker has left.
    fn close(&self) {
        self.open.store(false, SeqCst);
        let mut rounds = 0u32;
        while self.inside.0.load(SeqCst) != 0 {
            rounds += 1;
            if rounds < 2000 {
                std::hint::spin_loop();
            } else {
                // The worker has lost its core: give it ours.
                thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for tasks in (0..200).chain([10_000]) {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
            }
        }
    }

    #[test]
    fn parked_workers_come_back_and_drop_ends_them() {
        let pool = Pool::new(3);
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(2));
            let sum = AtomicUsize::new(0);
            pool.run(100, &|i| {
                sum.fetch_add(i, Relaxed);
            });
            assert_eq!(sum.load(Relaxed), 4950);
        }
        let shared = Arc::downgrade(&pool.shared);
        drop(pool);
        assert!(shared.upgrade().is_none());
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        for bad in [0, 17, 63] {
            let run = || pool.run(64, &|i| assert_ne!(i, bad, "task {bad}"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            let sum = AtomicUsize::new(0);
            pool.run(10, &|i| {
                sum.fetch_add(i, Relaxed);
            });
            assert_eq!(sum.load(Relaxed), 45);
        }
    }

    #[test]
    fn nested_and_concurrent_runs_finish() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(4, &|_| {
                            pool.run(3, &|i| {
                                sum.fetch_add(i, Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Relaxed), 4 * 50 * 4 * 3);
    }
}
