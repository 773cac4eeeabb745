//! Who belongs to the fabric: its certificate authority, a node's identity, join tokens, `init` and `join`.
mod admit;
mod authority;
mod error;
mod files;
mod identity;
mod init;
mod join;
mod tls;
mod token;

pub use admit::{PrefixSpec, admit, remove_node};
pub use authority::Authority;
pub use error::MembershipError;
pub use identity::{Identity, NodeKeys};
pub use init::{Init, init_fabric};
pub use join::{join, join_via_token};
pub use tls::{SEED_NAME, node_server_name};
pub use token::{Token, TokenSpec, create_token};
