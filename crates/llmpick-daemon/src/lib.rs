//! The assembled program: settings, parts, HTTP.
