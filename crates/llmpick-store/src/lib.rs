//! The catalogue, downloads, verification and the cache of models.
