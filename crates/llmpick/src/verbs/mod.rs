//! One file per verb: its options, what it does, what it prints.

pub mod bench;
pub mod chat;
pub mod config;
pub mod doctor;
pub mod eval;
pub mod feedback;
pub mod manual;
pub mod models;
pub mod perplexity;
pub mod plugin;
pub mod pull;
pub mod reload;
pub mod replay;
pub mod route;
pub mod serve;
pub mod sim;
pub mod task;
pub mod tokenize;
