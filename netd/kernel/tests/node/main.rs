//! The kernel's side on a real kernel: a node in a network namespace of its own, workspaces in others. Needs root.
mod attach;
mod compare;
mod isolation;
mod packet;
mod support;
