//! `netctl init`: the CA, the fabric and its first node; safe to repeat after a crash between any two steps.
use std::{collections::HashSet, net::SocketAddr, path::Path};

use ipnet::Ipv4Net;
use weft_model::{
    ApiError, ErrorCode, FabricPrefix, NodeName,
    object::{Author, FabricSpec, Kind, NodeSpec, Role},
};

use super::{
    Authority, Identity, MembershipError, NodeKeys, SigningRequest,
    join::already_member,
    prefix::{candidate, claim},
    tls::unusable,
};
use crate::{ObjectExt, Store, Txn};

/// What the operator wants.
#[derive(Debug, Clone)]
pub struct Init {
    /// The fabric's prefix; drawn if absent.
    pub prefix: Option<FabricPrefix>,
    /// The domain, in lower case.
    pub domain: String,
    /// Private IPv4 ranges that workspaces may reach.
    pub nat64_private: Vec<Ipv4Net>,
    /// This node's name.
    pub node: NodeName,
    /// Its roles; `seed` is added.
    pub roles: Vec<Role>,
    /// Where it will answer other nodes.
    pub seeds: Vec<SocketAddr>,
    /// Who asked.
    pub author: Author,
}

/// Makes the fabric, its CA and its first node, then writes this node's identity. The files come before the one
/// transaction and the identity after it: repeated after a crash, it goes on where it stopped.
pub async fn init_fabric(
    store: &dyn Store,
    state_dir: &Path,
    init: &Init,
    now_ms: u64,
) -> Result<(Identity, FabricSpec, NodeSpec), MembershipError> {
    if let Some(identity) = Identity::load(state_dir)? {
        return Err(already_member(&identity));
    }
    let made = store.get(Kind::Fabric, "fabric").await?;
    let authority = match (Authority::load(state_dir)?, &made) {
        (Some(authority), _) => authority,
        (None, None) => {
            let authority = Authority::generate(now_ms)?;
            authority.save(state_dir)?;
            authority
        }
        (None, Some(_)) => return Err(foreign("ca.json is missing")),
    };
    let keys = NodeKeys::load_or_generate(state_dir)?;
    let csr = SigningRequest::parse(&keys.signing_request(&init.node)?)?;
    let (fabric, node) = match made {
        Some(object) => resume(store, init, &keys, &authority, object.read_spec()?).await?,
        None => create(store, init, &keys, &authority, &csr, now_ms).await?,
    };
    let identity = Identity {
        node: init.node.clone(),
        prefix: node.prefix,
        seed: true,
        seeds: init.seeds.clone(),
        certificate_pem: authority.issue(&csr, &init.node, &node.roles, now_ms)?,
        ca_pem: authority.ca_pem().into(),
        keys,
    };
    identity.save(state_dir)?;
    Ok((identity, fabric, node))
}

async fn create(
    store: &dyn Store,
    init: &Init,
    keys: &NodeKeys,
    authority: &Authority,
    csr: &SigningRequest,
    now_ms: u64,
) -> Result<(FabricSpec, NodeSpec), MembershipError> {
    let prefix = match init.prefix {
        Some(prefix) => prefix,
        None => draw()?,
    };
    let fabric = FabricSpec {
        prefixes: vec![prefix],
        domain: init.domain.clone(),
        nat64_private: init.nat64_private.clone(),
        ca_pem: authority.ca_pem().into(),
    };
    let wireguard_public_key = keys.wireguard_public_key()?;
    let first = candidate(prefix, &wireguard_public_key, &HashSet::new());
    let mut roles = init.roles.clone();
    if !roles.contains(&Role::Seed) {
        roles.push(Role::Seed);
    }
    let node = NodeSpec {
        prefix: first.ok_or_else(|| unusable("the fabric's prefix", &"it leaves no room for nodes"))?,
        wireguard_public_key,
        roles,
        region: None,
    };
    let txn = Txn::new(init.author.clone(), now_ms).expect_absent(Kind::Fabric, "fabric").put_spec(
        Kind::Fabric,
        "fabric",
        &fabric,
    );
    store.commit(claim(txn, &init.node, &node, &csr.tls_key_sha256)).await?;
    Ok((fabric, node))
}

/// The fabric that an earlier, unfinished init made, if this one asks for the same.
async fn resume(
    store: &dyn Store,
    init: &Init,
    keys: &NodeKeys,
    authority: &Authority,
    fabric: FabricSpec,
) -> Result<(FabricSpec, NodeSpec), MembershipError> {
    if fabric.ca_pem != authority.ca_pem() {
        return Err(foreign("ca.json is another fabric's"));
    }
    let node = store.get(Kind::Node, init.node.as_str()).await?;
    let node: Option<NodeSpec> = node.map(|object| object.read_spec()).transpose()?;
    let public_key = keys.wireguard_public_key()?;
    let node = node.filter(|node| node.wireguard_public_key == public_key && node.roles.contains(&Role::Seed));
    let node = node.ok_or_else(|| foreign(&format!("its first node is not {} with this node's keys", init.node)))?;
    let other = |field: &str, value: String, is: String| {
        let message = format!("an init that was not finished has made the fabric with the {field} {is}");
        let hint = "repeat it with that, or move the state directory away to start over";
        MembershipError::Refused(ApiError::new(ErrorCode::Conflict, message, hint).blame(field, value))
    };
    if let Some(prefix) = init.prefix.filter(|prefix| !fabric.prefixes.contains(prefix)) {
        let is: Vec<_> = fabric.prefixes.iter().map(ToString::to_string).collect();
        return Err(other("prefix", prefix.to_string(), is.join(", ")));
    }
    if init.domain != fabric.domain {
        return Err(other("domain", init.domain.clone(), fabric.domain.clone()));
    }
    Ok((fabric, node))
}

fn foreign(reason: &str) -> MembershipError {
    let message = format!("store.db holds a fabric already, but {reason}");
    let hint = "restore the state directory from a copy as a whole, or move it away to start over";
    MembershipError::Refused(ApiError::new(ErrorCode::Conflict, message, hint))
}

fn draw() -> Result<FabricPrefix, MembershipError> {
    loop {
        // One draw in 16 million falls into the range that is avoided.
        if let Some(prefix) = FabricPrefix::from_random(super::random()?) {
            return Ok(prefix);
        }
    }
}
