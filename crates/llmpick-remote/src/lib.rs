//! OpenAI-compatible APIs behind Backend.
