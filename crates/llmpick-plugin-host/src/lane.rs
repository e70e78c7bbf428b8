//! One thread that owns a plugin instance, so that a call can be given up.
//!
//! Jobs run in the order in which they came. A caller waits until its deadline and then
//! goes on without the answer; the thread may still be busy, which [`Lane::busy_with`]
//! tells. A lane that is given up keeps its thread until the plugin comes back, if ever.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

type Job<W> = Box<dyn FnOnce(&mut W) + Send>;

/// A handle to the thread; dropping it lets the thread finish what it is at and end.
pub(crate) struct Lane<W> {
    shared: Arc<Shared<W>>,
}

struct Shared<W> {
    queue: Mutex<Queue<W>>,
    /// Changes with every job and with the end, so that the thread can look for the next one
    /// without the lock.
    news: AtomicU64,
    work: Condvar,
    room: Condvar,
}

struct Queue<W> {
    jobs: VecDeque<Entry<W>>,
    posts: usize,
    dropped: u64,
    /// A poster waited in vain: the next ones do not wait until something moved.
    jammed: bool,
    started: u64,
    finished: u64,
    closed: bool,
}

struct Entry<W> {
    ticket: u64,
    posted: bool,
    job: Job<W>,
}

/// The number of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The deadline passed; the job may still run.
    Late(Ticket),
    /// The thread is gone.
    Gone,
}

/// Why there is no lane.
pub(crate) enum NoLane<E> {
    /// The worker could not be made.
    Refused(E),
    /// Making it took too long.
    Late,
    /// The system gave no thread.
    Thread(std::io::Error),
}

impl<W: 'static> Lane<W> {
    /// Starts the thread and makes the worker on it.
    pub(crate) fn start<E: Send + 'static>(
        name: &str,
        deadline: Duration,
        make: impl FnOnce() -> Result<W, E> + Send + 'static,
    ) -> Result<Self, NoLane<E>> {
        let lane = Self {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue {
                    jobs: VecDeque::new(),
                    posts: 0,
                    dropped: 0,
                    jammed: false,
                    started: 0,
                    finished: 0,
                    closed: false,
                }),
                news: AtomicU64::new(0),
                work: Condvar::new(),
                room: Condvar::new(),
            }),
        };
        let shared = Arc::clone(&lane.shared);
        let (tell, hear) = sync_channel(1);
        let run = move || {
            let made = make().map(|mut worker| {
                let _ = tell.send(Ok(()));
                shared.serve(&mut worker);
            });
            if let Err(error) = made {
                let _ = tell.send(Err(error));
            }
        };
        // The kernel keeps 15 bytes of a thread's name.
        let name = format!("plugin:{name}");
        let thread = std::thread::Builder::new().name(name).spawn(run);
        thread.map_err(NoLane::Thread)?;
        match hear.recv_timeout(deadline) {
            Ok(Ok(())) => Ok(lane),
            Ok(Err(error)) => Err(NoLane::Refused(error)),
            Err(_) => Err(NoLane::Late),
        }
    }

    /// Runs `job` and waits for its answer until the deadline. A job that has not begun by
    /// then never does.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        deadline: Duration,
        job: impl FnOnce(&mut W) -> R + Send + 'static,
    ) -> Result<R, NoAnswer> {
        let (tell, hear): (SyncSender<R>, _) = sync_channel(1);
        let given_up = Arc::new(AtomicBool::new(false));
        let too_late = Arc::clone(&given_up);
        let ticket = self.push(Box::new(move |worker: &mut W| {
            if !too_late.load(Ordering::Acquire) {
                let _ = tell.send(job(worker));
            }
        }));
        if let Some(answer) = soon(|| heard(&hear)) {
            return Ok(answer);
        }
        hear.recv_timeout(deadline).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                given_up.store(true, Ordering::Release);
                NoAnswer::Late(ticket)
            }
            RecvTimeoutError::Disconnected => NoAnswer::Gone,
        })
    }

    /// Leaves a job and does not wait for it. Where `most` jobs wait already, waits up to
    /// `patience` for room, then drops the oldest. Answers how many were dropped so far.
    pub(crate) fn post(
        &self,
        most: usize,
        patience: Duration,
        job: impl FnOnce(&mut W) + Send + 'static,
    ) -> u64 {
        let mut queue = self.queue();
        if queue.posts >= most && !queue.jammed {
            let end = Instant::now() + patience;
            while queue.posts >= most && !queue.jammed {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    queue.jammed = true;
                    break;
                }
                let waited = self.shared.room.wait_timeout(queue, left);
                queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        if queue.posts >= most
            && let Some(oldest) = queue.jobs.iter().position(|entry| entry.posted)
        {
            queue.jobs.remove(oldest);
            queue.posts -= 1;
            queue.dropped += 1;
        }
        queue.push(true, Box::new(job));
        let dropped = queue.dropped;
        drop(queue);
        self.shared.tell();
        dropped
    }

    /// True while the thread has not come past this call.
    pub(crate) fn busy_with(&self, Ticket(ticket): Ticket) -> bool {
        self.queue().finished < ticket
    }

    /// Takes over the posted jobs that a given-up lane has not begun.
    pub(crate) fn inherit(&self, old: &Self) {
        let jobs: Vec<Entry<W>> = old.queue().jobs.drain(..).collect();
        let mut queue = self.queue();
        for entry in jobs.into_iter().filter(|entry| entry.posted) {
            queue.push(true, entry.job);
        }
        drop(queue);
        self.shared.tell();
    }

    fn push(&self, job: Job<W>) -> Ticket {
        let ticket = self.queue().push(false, job);
        self.shared.tell();
        ticket
    }

    fn queue(&self) -> MutexGuard<'_, Queue<W>> {
        self.shared.lock()
    }
}

/// How long to look for what the other thread has to say before going to sleep: most of it
/// comes in a few microseconds. Being woken took 20 to 40 µs on an idle virtual machine, so a
/// thread that slept at once would turn a decision of 4 µs into one of 90.
const LOOK: Duration = Duration::from_micros(60);

/// What `look` finds, if that is soon and there is a processor for it to come from.
fn soon<R>(look: impl Fn() -> Looked<R>) -> Option<R> {
    static ALONE: LazyLock<bool> =
        LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|n| n.get() == 1));
    if *ALONE {
        return None;
    }
    let start = Instant::now();
    loop {
        match look() {
            Looked::Found(found) => return Some(found),
            Looked::Never => return None,
            Looked::NotYet if start.elapsed() > LOOK => return None,
            Looked::NotYet => (0..16).for_each(|_| std::hint::spin_loop()),
        }
    }
}

enum Looked<R> {
    Found(R),
    NotYet,
    Never,
}

fn heard<R>(hear: &Receiver<R>) -> Looked<R> {
    match hear.try_recv() {
        Ok(answer) => Looked::Found(answer),
        Err(TryRecvError::Empty) => Looked::NotYet,
        // Waiting for it says so too.
        Err(TryRecvError::Disconnected) => Looked::Never,
    }
}

impl<W> Drop for Lane<W> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.tell();
    }
}

impl<W> Queue<W> {
    fn push(&mut self, posted: bool, job: Job<W>) -> Ticket {
        self.started += 1;
        self.posts += usize::from(posted);
        let ticket = self.started;
        self.jobs.push_back(Entry {
            ticket,
            posted,
            job,
        });
        Ticket(ticket)
    }
}

impl<W> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, Queue<W>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something new in the queue.
    fn tell(&self) {
        self.news.fetch_add(1, Ordering::Release);
        self.work.notify_one();
    }

    fn serve(&self, worker: &mut W) {
        while let Some(entry) = self.next() {
            let news = self.news.load(Ordering::Acquire);
            (entry.job)(worker);
            let mut queue = self.lock();
            queue.finished = queue.finished.max(entry.ticket);
            let idle = queue.jobs.is_empty() && !queue.closed;
            drop(queue);
            if idle {
                // Decisions come in bursts. What is found here is taken under the lock.
                let _ = soon(|| match self.news.load(Ordering::Acquire) == news {
                    true => Looked::NotYet,
                    false => Looked::Found(()),
                });
            }
        }
    }

    fn next(&self) -> Option<Entry<W>> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(entry) = queue.jobs.pop_front() {
                queue.posts -= usize::from(entry.posted);
                queue.jammed = false;
                self.room.notify_one();
                return Some(entry);
            }
            queue = self
                .work
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Lane<Vec<u32>> {
        match Lane::start("test", Duration::from_secs(5), || Ok::<_, ()>(Vec::new())) {
            Ok(lane) => lane,
            Err(_) => panic!("a thread is to be had"),
        }
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn jobs_run_in_order() {
        let lane = lane();
        for number in 0..100 {
            lane.post(1_000, LONG, move |seen| seen.push(number));
        }
        let seen = lane.call(LONG, |seen| seen.clone());
        assert_eq!(seen, Ok((0..100).collect()));
    }

    #[test]
    fn a_late_call_is_given_up_and_the_lane_goes_on() {
        let lane = lane();
        let (open, gate) = sync_channel::<()>(0);
        let Err(NoAnswer::Late(ticket)) = lane.call(Duration::from_millis(10), move |_| {
            let _ = gate.recv();
        }) else {
            panic!("it cannot be in time");
        };
        assert!(lane.busy_with(ticket));
        let never = lane.call(Duration::from_millis(1), |seen| seen.push(1));
        assert!(matches!(never, Err(NoAnswer::Late(_))));
        drop(open);
        assert_eq!(
            lane.call(LONG, |seen| seen.len()),
            Ok(0),
            "given up before it began"
        );
        assert!(!lane.busy_with(ticket));
    }

    #[test]
    fn a_full_backlog_drops_the_oldest_and_counts() {
        let lane = lane();
        let (open, gate) = sync_channel::<()>(0);
        let stuck = lane.call(Duration::from_millis(5), move |_| {
            let _ = gate.recv();
        });
        assert!(stuck.is_err());
        let dropped: Vec<u64> = (0..6)
            .map(|number| lane.post(4, Duration::from_millis(1), move |seen| seen.push(number)))
            .collect();
        assert_eq!(dropped, [0, 0, 0, 0, 1, 2]);
        drop(open);
        assert_eq!(lane.call(LONG, |seen| seen.clone()), Ok(vec![2, 3, 4, 5]));
    }

    #[test]
    fn a_new_lane_inherits_what_was_posted() {
        let (old, new) = (lane(), lane());
        let (_open, gate) = sync_channel::<()>(0);
        let stuck = old.call(Duration::from_millis(5), move |_| {
            let _ = gate.recv();
        });
        assert!(stuck.is_err());
        old.post(4, LONG, |seen| seen.push(7));
        new.inherit(&old);
        assert_eq!(new.call(LONG, |seen| seen.clone()), Ok(vec![7]));
    }
}
