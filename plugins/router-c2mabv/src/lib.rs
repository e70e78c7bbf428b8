//! Router plugin: c2mabv.
