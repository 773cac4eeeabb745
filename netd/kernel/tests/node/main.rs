//! The kernel's side on a real kernel: a node in a network namespace of its own, workspaces in others. Needs root.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test states what must hold")]
mod attach;
mod compare;
mod isolation;
mod packet;
mod support;
