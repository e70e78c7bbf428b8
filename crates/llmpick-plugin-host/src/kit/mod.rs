//! The conformance kit: does a plugin keep the promises of `llmpick_plugin.h`?
//!
//! Every test runs in a process of its own, so that a crash, an abort or an endless loop is
//! the failure of that one test. The kit starts the program it is part of again, with
//! whatever arguments lead that program to [`run_task`] ([`Kit::child`] says which).
//!
//! The tests talk to the plugin over the C interface itself, not through the host's
//! supervision: what the host forgives, the kit names.

mod child;
mod inputs;
mod memory;
mod metadata;
mod parent;
mod router;
mod router_hard;
mod scorer;
mod subject;

use std::process::Command;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::PluginKind;

pub use child::run_task;

/// A library under test.
pub struct Kit<'a> {
    /// The library.
    pub file: &'a Utf8Path,
    /// Only the plugin of this name; `None` for every one in the library.
    pub plugin: Option<&'a str>,
    /// The settings to create it with: a JSON object, `{}` for its defaults.
    pub settings: &'a str,
    /// Only tests whose name holds this text.
    pub only: Option<&'a str>,
    /// Longest time for one test; then its process is ended and the test has failed.
    pub time_limit: Duration,
    /// Starts this program again so that it calls [`run_task`] with the task, and leaves
    /// standard output to it.
    pub child: &'a dyn Fn(&Task) -> Command,
}

/// One test to run in a process of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The library.
    pub file: Utf8PathBuf,
    /// The plugin in it, and what it is; `None` for the test that it loads.
    pub plugin: Option<(PluginKind, String)>,
    /// The name of the test.
    pub test: String,
    /// The settings to create it with.
    pub settings: String,
}

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TestResult {
    /// The plugin; empty where the library could not be loaded.
    pub plugin: String,
    /// What it is.
    pub kind: Option<PluginKind>,
    /// What was tested.
    pub test: String,
    /// Whether the promise was kept.
    pub passed: bool,
    /// What was seen: why it failed, or a measurement; may be empty.
    pub note: String,
}

/// How many tests ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Promises kept.
    pub passed: u32,
    /// Promises broken.
    pub failed: u32,
}

/// Why nothing could be tested.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KitError {
    /// The library holds no plugin of that name.
    #[error("test plugin `{name}`: the library holds {held}")]
    NoSuchPlugin {
        /// What was asked for.
        name: String,
        /// What there is.
        held: String,
    },
    /// The filter leaves nothing.
    #[error("find a test whose name holds `{0}`: there are\n  {1}")]
    NoSuchTest(String, String),
    /// The settings are no JSON object.
    #[error("read the settings for the test: {0}")]
    Settings(String),
    /// A process could not be started.
    #[error("start a process for a test")]
    Spawn(#[source] std::io::Error),
}

impl Kit<'_> {
    /// Runs the tests one after the other and reports each as it ends. The first is that the
    /// library loads; the others need that.
    ///
    /// # Errors
    /// Only where nothing could be tested; a broken promise is a [`TestResult`].
    pub fn run(&self, each: impl FnMut(&TestResult)) -> Result<Summary, KitError> {
        parent::run(self, each)
    }
}

/// The name of the first test.
const LOADS: &str = "it loads";

/// A test of a router or a scorer: what is promised, and the code that tries it. `Ok` holds
/// what was measured, `Err` why the promise is broken.
struct Test {
    name: &'static str,
    run: fn(&subject::Plugin) -> Result<String, String>,
}

/// All tests for plugins of this kind, in order.
fn tests(kind: PluginKind) -> Vec<&'static Test> {
    let own: [&'static [Test]; 2] = match kind {
        PluginKind::Router => [router::TESTS, router_hard::TESTS],
        PluginKind::Scorer => [scorer::TESTS, &[]],
    };
    metadata::TESTS
        .iter()
        .chain(own.into_iter().flatten())
        .collect()
}
