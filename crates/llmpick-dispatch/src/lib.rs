//! The runtime of a request.
