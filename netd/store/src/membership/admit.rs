//! The seed's side of a join: the token is checked and used, a prefix claimed and the node recorded, in one transaction.
use std::{collections::HashSet, net::SocketAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use subtle::ConstantTimeEq;
use weft_model::{
    ApiError, ErrorCode, NodeName,
    api::{SeedJoinReply, SeedJoinRequest},
    object::{Author, FabricSpec, Kind, NodeSpec, Object, Role},
};

use super::{
    Authority, MembershipError, PrefixSpec, SigningRequest, TokenSpec,
    prefix::{candidate, claim},
    token::hash_of,
};
use crate::{ObjectExt, Store, StoreError, Txn};

/// How often a join is tried again when others write at the same time.
const TRIES: usize = 32;

/// Admits a node that shows a token's secret, or answers again to one that was admitted: a retry with the same name and
/// keys gets the same prefix and uses the token no second time.
///
/// An unknown id and a wrong secret give the same error; that a token has expired or is used up learns only who knows
/// its secret.
pub async fn admit(
    store: &dyn Store,
    authority: &Authority,
    seeds: &[SocketAddr],
    request: &SeedJoinRequest,
    now_ms: u64,
) -> Result<SeedJoinReply, MembershipError> {
    let mut refused = None;
    for _ in 0..TRIES {
        let (token, spec) = authenticate(store, request).await?;
        let joiner = Joiner::read(request)?;
        let fabric: FabricSpec = fabric(store).await?;
        let node = match joiner.already(store).await? {
            Some(node) => node,
            None => match joiner.enter(store, &fabric, &token, &spec, now_ms).await {
                Err(MembershipError::Store(error)) if error.is_conflict() => {
                    // Another join, or another use of this token, was faster: look again.
                    refused = Some(error);
                    continue;
                }
                other => other?,
            },
        };
        let certificate_pem = authority.issue(&joiner.csr, &request.node, &node.roles, now_ms)?;
        return Ok(SeedJoinReply { certificate_pem, fabric, spec: node, seeds: seeds.to_vec() });
    }
    let reason = refused.map_or_else(String::new, |error| error.to_string());
    Err(StoreError::Unavailable { reason: format!("too many nodes join at once ({reason})") }.into())
}

async fn fabric(store: &dyn Store) -> Result<FabricSpec, MembershipError> {
    let missing = || ApiError::new(ErrorCode::NotReady, "the seed has no fabric yet", "run `netctl init` there first");
    Ok(store.get(Kind::Fabric, "fabric").await?.ok_or_else(missing)?.read_spec()?)
}

/// The token, if the request knows its secret.
async fn authenticate(store: &dyn Store, request: &SeedJoinRequest) -> Result<(Object, TokenSpec), MembershipError> {
    let refused = || {
        let hint = "check that it was copied whole; `netctl token create` on the seed makes another";
        MembershipError::Refused(ApiError::new(ErrorCode::Unauthorized, "the seed does not know this token", hint))
    };
    let shown = hash_of(&request.secret);
    // An id that is none must look like an unknown one.
    let known = match crate::check::name(Kind::Token, &request.token_id) {
        Ok(()) => store.get(Kind::Token, &request.token_id).await?,
        Err(_) => None,
    };
    let spec = known.as_ref().map(ObjectExt::read_spec::<TokenSpec>).transpose()?;
    // The comparison takes place for unknown tokens too, so that both take the same time.
    let mut expected = [0; 32];
    let readable = spec.as_ref().is_some_and(|spec| hex::decode_to_slice(&spec.secret_sha256, &mut expected).is_ok());
    let equal = bool::from(shown.ct_eq(&expected));
    match (known, spec) {
        (Some(token), Some(spec)) if readable && equal => Ok((token, spec)),
        _ => Err(refused()),
    }
}

/// A node that asks to join, with its key's proof checked.
struct Joiner<'a> {
    node: &'a NodeName,
    wireguard_public_key: String,
    csr: SigningRequest,
}

impl<'a> Joiner<'a> {
    fn read(request: &'a SeedJoinRequest) -> Result<Self, MembershipError> {
        let key = STANDARD.decode(&request.wireguard_public_key).ok();
        let key = key.filter(|key| key.len() == 32 && key.iter().any(|byte| *byte != 0)).ok_or_else(|| {
            let message = "the WireGuard public key is not 32 bytes in base64";
            let error = ApiError::new(ErrorCode::Invalid, message, "upgrade the joining node, or try again there");
            error.blame("wireguard_public_key", request.wireguard_public_key.chars().take(64).collect::<String>())
        })?;
        let csr = SigningRequest::parse(&request.csr_pem)?;
        Ok(Self { node: &request.node, wireguard_public_key: STANDARD.encode(key), csr })
    }

    /// The node as it was admitted before with the same keys; an error if the name is another's.
    async fn already(&self, store: &dyn Store) -> Result<Option<NodeSpec>, MembershipError> {
        let Some(object) = store.get(Kind::Node, self.node.as_str()).await? else { return Ok(None) };
        let spec: NodeSpec = object.read_spec()?;
        // The WireGuard key is public: only the TLS key, which the request proves, tells that this is the same node.
        let same = spec.wireguard_public_key == self.wireguard_public_key
            && holder(store, self.node).await?.is_some_and(|holder| holder.tls_key_sha256 == self.csr.tls_key_sha256);
        if same {
            return Ok(Some(spec));
        }
        let hint = "choose another with `netctl join --node NAME`, or remove the old node on the seed first";
        let message = format!("the name {} belongs to another node of this fabric", self.node);
        Err(ApiError::new(ErrorCode::Conflict, message, hint).blame("node", self.node).into())
    }

    /// Uses the token, claims a prefix and records the node.
    async fn enter(
        &self,
        store: &dyn Store,
        fabric: &FabricSpec,
        token: &Object,
        spec: &TokenSpec,
        now_ms: u64,
    ) -> Result<NodeSpec, MembershipError> {
        let spent = |message: String| {
            ApiError::new(ErrorCode::Unauthorized, message, "make another with `netctl token create` on the seed")
        };
        if now_ms >= spec.expires_ms {
            return Err(spent(format!("token {} has expired", token.name)).into());
        }
        let uses_left = spec.uses_left.checked_sub(1);
        let uses_left = uses_left.ok_or_else(|| spent(format!("token {} is used up", token.name)))?;
        self.check_clone(store).await?;
        let (claims, _) = store.list(Kind::Prefix).await?;
        let taken: HashSet<String> = claims.into_iter().map(|claim| claim.name).collect();
        let first = fabric.prefixes.first().copied();
        let prefix =
            first.and_then(|fabric| candidate(fabric, &self.wireguard_public_key, &taken)).ok_or_else(|| {
                let hint = "remove nodes that are gone, or make a fabric with a shorter prefix";
                ApiError::new(ErrorCode::Limit, "every node prefix of the fabric is taken", hint)
            })?;
        let node = NodeSpec {
            prefix,
            wireguard_public_key: self.wireguard_public_key.clone(),
            roles: spec.roles.clone(),
            region: None,
        };
        let author = Author::User(format!("token:{}", token.name));
        let txn = Txn::new(author, now_ms).expect_unchanged(token).put_spec(
            Kind::Token,
            &token.name,
            &TokenSpec { uses_left, ..spec.clone() },
        );
        store.commit(claim(txn, self.node, &node, &self.csr.tls_key_sha256)).await?;
        Ok(node)
    }

    /// A copied disk brings its keys along: two nodes with one key would take each other's packets.
    async fn check_clone(&self, store: &dyn Store) -> Result<(), MembershipError> {
        for object in store.list(Kind::Node).await?.0 {
            if object.read_spec::<NodeSpec>()?.wireguard_public_key == self.wireguard_public_key {
                let message = format!("node {} has the same WireGuard key: is this machine a copy of it?", object.name);
                let hint = "remove keys.json from the copy's state directory, and join again";
                return Err(ApiError::new(ErrorCode::Conflict, message, hint).into());
            }
        }
        Ok(())
    }
}

/// The claim of a node's prefix, if the node is a member.
pub(crate) async fn holder(store: &dyn Store, node: &NodeName) -> Result<Option<PrefixSpec>, StoreError> {
    let Some(object) = store.get(Kind::Node, node.as_str()).await? else { return Ok(None) };
    let spec: NodeSpec = object.read_spec()?;
    let Some(claim) = store.get(Kind::Prefix, &spec.prefix.to_string()).await? else { return Ok(None) };
    Ok(Some(claim.read_spec::<PrefixSpec>()?).filter(|claim| claim.node == *node))
}

/// Removes a node with its prefix: the seed refuses its certificate from then on.
pub async fn remove_node(
    store: &dyn Store,
    node: &NodeName,
    author: Author,
    now_ms: u64,
) -> Result<(), MembershipError> {
    let missing = || {
        let hint = "`netctl status` lists the nodes";
        ApiError::new(ErrorCode::NotFound, format!("there is no node {node}"), hint).blame("node", node)
    };
    let object = store.get(Kind::Node, node.as_str()).await?.ok_or_else(missing)?;
    let spec: NodeSpec = object.read_spec()?;
    if spec.roles.contains(&Role::Seed) {
        let hint = "move the store to another node first";
        return Err(ApiError::new(ErrorCode::Conflict, format!("node {node} holds the store"), hint).into());
    }
    let txn = Txn::new(author, now_ms)
        .expect_unchanged(&object)
        .delete(Kind::Node, node.as_str())
        .delete(Kind::Prefix, &spec.prefix.to_string());
    store.commit(txn).await?;
    Ok(())
}
