//! Who belongs to the fabric: its certificate authority, a node's identity, join tokens, `init` and `join`.
mod admit;
mod authority;
mod error;
mod files;
mod identity;
mod init;
mod join;
mod prefix;
pub(crate) mod tls;
mod token;

pub(crate) use admit::holder;
pub use admit::{admit, remove_node};
pub use authority::{Authority, SigningRequest};
pub use error::MembershipError;
pub use identity::{Identity, NodeKeys};
pub use init::{Init, init_fabric};
pub use join::{join, join_via_token};
pub use prefix::PrefixSpec;
pub use tls::{SEED_NAME, node_dns_name};
pub use token::{Token, TokenSpec, create_token};

/// Bytes from the kernel's generator.
fn random<const N: usize>() -> Result<[u8; N], MembershipError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| tls::unusable("the kernel's random generator", &error))?;
    Ok(bytes)
}
