//! What a call into a plugin answers when it did not work.

use llmpick_plugin_abi as abi;

use crate::context::clean;

/// A status other than OK, with the plugin's sentence or ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallError {
    pub status: abi::Status,
    pub message: String,
}

/// An empty error struct for a plugin to fill.
pub(crate) fn error() -> abi::Error {
    abi::Error {
        size: size_of::<abi::Error>() as u32,
        ..abi::zeroed()
    }
}

/// Reads what a call left.
pub(crate) fn result(status: abi::Status, error: &abi::Error) -> Result<(), CallError> {
    if status == abi::OK {
        return Ok(());
    }
    let len = (error.len as usize).min(abi::ERROR_CAPACITY);
    let bytes = error.msg[..len].iter().map(|&c| c as u8);
    let mut message = clean(&bytes.collect::<Vec<u8>>());
    if message.is_empty() {
        message = match status {
            abi::E_ABSTAIN => "it abstained".to_owned(),
            abi::E_INVALID => "it called our request invalid".to_owned(),
            abi::E_CONFIG => "it refused its configuration".to_owned(),
            abi::E_STATE => "it does not understand the state".to_owned(),
            abi::E_UNSUPPORTED => "it does not offer this".to_owned(),
            abi::E_PANIC => "it panicked".to_owned(),
            status => format!("it answered status {status}"),
        };
    }
    Err(CallError { status, message })
}
