//! The processor as one shared device: threads, and whose turn it is.
//!
//! Every model of the process uses the same pool. Two models that run at once would
//! otherwise hold twice as many spinning threads as there are cores, and each would run
//! several times slower. So a model takes a turn for each step (one token, or one piece of
//! a prompt), in order of arrival: two models share the machine step by step, and the time
//! inside turns is what a request is billed for.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use llmpick_kernels::Pool;
use parking_lot::{FairMutex, FairMutexGuard, Mutex};

/// The threads that compute, and the order in which models use them.
pub(crate) struct Device {
    pool: Pool,
    turn: &'static FairMutex<()>,
}

impl Device {
    /// The device with so many threads, shared by all who ask for the same number;
    /// `None` means as many as the process may use.
    pub fn shared(threads: Option<usize>) -> Arc<Device> {
        static DEVICES: OnceLock<Mutex<HashMap<usize, Weak<Device>>>> = OnceLock::new();
        static TURN: FairMutex<()> = FairMutex::new(());
        let threads = threads.unwrap_or(0);
        let mut devices = DEVICES.get_or_init(Mutex::default).lock();
        if let Some(device) = devices.get(&threads).and_then(Weak::upgrade) {
            return device;
        }
        let device = Arc::new(Device {
            pool: Pool::new(threads),
            turn: &TURN,
        });
        devices.insert(threads, Arc::downgrade(&device));
        device
    }

    /// Waits until no other model computes.
    pub fn turn(&self) -> FairMutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// The threads. Use them inside a [`turn`](Self::turn).
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}
