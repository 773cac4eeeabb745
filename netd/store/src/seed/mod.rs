//! A seed node's API: the same objects over mutual TLS, for nodes that joined.
mod client;
mod server;

pub use client::SeedStore;
pub use server::{SeedState, router, serve};
