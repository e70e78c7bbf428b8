//! Finds, checks, loads and supervises plugins; a loaded plugin is an ordinary Router or Scorer.
