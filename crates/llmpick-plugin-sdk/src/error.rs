//! What a plugin answers when it cannot do its work.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use llmpick_plugin_abi as abi;

/// The result of every plugin function.
///
/// ```
/// use llmpick_plugin_sdk::Result;
///
/// fn port(text: &str) -> Result<u16> {
///     Ok(text.parse()?)
/// }
/// assert!(port("80").is_ok());
/// assert_eq!(port("a lot").unwrap_err().message(), "invalid digit found in string");
/// ```
pub type Result<T> = std::result::Result<T, Error>;

/// Why a plugin could not do its work: a kind for the host, a sentence for people.
///
/// Any `std::error::Error` converts into an [`internal`](Self::internal) one, so `?` works.
///
/// ```
/// use llmpick_plugin_sdk::Error;
///
/// assert_eq!(Error::config("`epsilon` is above 1").to_string(), "`epsilon` is above 1");
/// assert!(Error::abstain().is_abstain());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: abi::Status,
    message: String,
}

impl Error {
    /// No opinion on this request: the host decides. Not a fault.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::Error;
    /// assert!(Error::abstain().is_abstain());
    /// ```
    pub fn abstain() -> Self {
        Self::new(abi::E_ABSTAIN, "no opinion")
    }

    /// The configuration cannot be used.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::Error;
    /// let error = Error::config("`epsilon` is a number from 0 to 1");
    /// assert_eq!(error.message(), "`epsilon` is a number from 0 to 1");
    /// ```
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(abi::E_CONFIG, message)
    }

    /// The snapshot is not one this plugin understands.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::Error;
    /// let error = Error::state("it lacks the arms");
    /// assert_eq!(error.message(), "it lacks the arms");
    /// ```
    pub fn state(message: impl Into<String>) -> Self {
        Self::new(abi::E_STATE, message)
    }

    /// The host passed something wrong.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::Error;
    /// let error = Error::invalid("a request without candidates");
    /// assert_eq!(error.message(), "a request without candidates");
    /// ```
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(abi::E_INVALID, message)
    }

    /// Not offered by this plugin.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::Error;
    /// let error = Error::unsupported("only in a newer version");
    /// assert_eq!(error.message(), "only in a newer version");
    /// ```
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(abi::E_UNSUPPORTED, message)
    }

    /// Something else went wrong inside the plugin.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::Error;
    /// let error = Error::internal("the table is empty");
    /// assert_eq!(error.message(), "the table is empty");
    /// ```
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(abi::E_INTERNAL, message)
    }

    pub(crate) fn io(message: impl Into<String>) -> Self {
        Self::new(abi::E_IO, message)
    }

    fn new(status: abi::Status, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// True for [`abstain`](Self::abstain).
    ///
    /// ```
    /// # use llmpick_plugin_sdk::Error;
    /// assert!(!Error::internal("out of order").is_abstain());
    /// ```
    pub fn is_abstain(&self) -> bool {
        self.status == abi::E_ABSTAIN
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

// `Error` is deliberately no `std::error::Error`: otherwise this would overlap with
// `impl From<T> for T`.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        Self::internal(error.to_string())
    }
}

/// Runs one entry: an error or a panic becomes a status and a sentence in `err`, and
/// nothing unwinds out of it.
///
/// # Safety
/// `err` is NULL or points to the host's error struct, as its `size` field says.
pub(crate) unsafe fn entry(err: *mut abi::Error, body: impl FnOnce() -> Result<()>) -> abi::Status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => abi::OK,
        Ok(Err(error)) => {
            // SAFETY: the caller's promise is passed on.
            unsafe { write_error(err, &error.message) };
            error.status
        }
        Err(payload) => {
            let message = format!("panicked: {}", panic_message(&*payload));
            // Dropping the payload could panic again, and there is no one left to catch it.
            std::mem::forget(payload);
            // SAFETY: the caller's promise is passed on.
            unsafe { write_error(err, &message) };
            abi::E_PANIC
        }
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Writes `message` into the host's buffer, cut at a character boundary.
///
/// # Safety
/// As for [`entry`].
unsafe fn write_error(err: *mut abi::Error, message: &str) {
    if err.is_null() {
        return;
    }
    // SAFETY: `err` points to a struct that starts with its size.
    let size = unsafe { (&raw const (*err).size).read() } as usize;
    let start = std::mem::offset_of!(abi::Error, msg);
    let room = size.saturating_sub(start).min(abi::ERROR_CAPACITY);
    let message = cut(message, room);
    if size < start {
        return;
    }
    // SAFETY: `len` lies inside `size`, and `room` bytes of `msg` do.
    unsafe {
        std::ptr::copy_nonoverlapping(
            message.as_ptr(),
            (&raw mut (*err).msg).cast::<u8>(),
            message.len(),
        );
        (&raw mut (*err).len).write(message.len() as u32);
    }
}

/// The longest prefix of at most `room` bytes that is whole characters.
pub(crate) fn cut(text: &str, room: usize) -> &str {
    let mut end = text.len().min(room);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        assert_eq!(cut("größe", 3), "gr");
        assert_eq!(cut("größe", 4), "grö");
        assert_eq!(cut("größe", 99), "größe");
    }

    #[test]
    fn any_error_converts() {
        let convert = || -> Result<u32> { Ok("seven".parse::<u32>()?) };
        assert_eq!(
            convert().map_err(|e| e.to_string()),
            Err("invalid digit found in string".to_owned())
        );
    }
}
