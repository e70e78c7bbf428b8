//! The mirror of `llmpick_plugin.h`, version 1.0.
