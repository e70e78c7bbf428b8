//! Whether the libraries of an NVIDIA driver and toolkit can be opened.
//!
//! The bindings panic at their first use where a library is missing, so this is asked first.

/// Looks for the driver's library and the two of the toolkit that candle calls.
///
/// # Errors
/// The first that is missing, as a sentence. Without the cfg `dynamic-loading` the
/// libraries are linked, so a program that runs has them.
pub fn libraries() -> Result<(), &'static str> {
    #[cfg(feature = "dynamic-loading")]
    {
        use candle_core::cuda_backend::cudarc::{cublas, curand, driver};
        // SAFETY: each opens a shared library by the names of NVIDIA's, which runs that
        // library's initialisers and nothing else, and closes it again. The names are
        // looked for where the system looks for every library of this program.
        let found = unsafe {
            [
                (driver::sys::is_culib_present(), "no NVIDIA driver"),
                (cublas::sys::is_culib_present(), "no cuBLAS library"),
                (curand::sys::is_culib_present(), "no cuRAND library"),
            ]
        };
        if let Some((_, missing)) = found.into_iter().find(|(found, _)| !found) {
            return Err(missing);
        }
    }
    Ok(())
}
