//! The scorers we ship.
