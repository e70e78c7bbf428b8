//! Local models behind Backend.
