//! The assembled program: settings, parts, HTTP.
//!
//! The only crate that names concrete parts. [`Settings`] says what is wanted, [`App`]
//! puts it together, [`serve`] answers HTTP with it, and [`client`] talks to a daemon that
//! already does.

mod app;
pub mod client;
mod parts;
mod paths;
pub mod plugins;
mod pool;
mod reload;
mod residency;
mod scheduling;
mod scorers;
mod server;
pub mod settings;
mod task;

pub use app::{App, AppError, AppOptions};
pub use llmpick_dispatch as dispatch;
pub use llmpick_engine as engine;
pub use llmpick_ledger as ledger;
pub use llmpick_plugin_host as plugin_host;
pub use llmpick_remote::Secret;
pub use parts::{ModelError, engine_options, model_path, open_ledger, open_store};
pub use paths::Paths;
pub use pool::ReloadedArms;
pub use reload::Reloaded;
pub use server::{ServeError, Server, serve};
pub use settings::{DEFAULT_CONFIG, Settings, SettingsError, SettingsSources};
pub use task::{AttemptReport, PartReport, TaskReport};
