//! `netctl join`: a token's secret for a certificate and a prefix.
use std::{path::Path, time::Duration};

use weft_client::Client;
use weft_model::{
    ApiError, ErrorCode, NodeName,
    api::{SeedJoinReply, SeedJoinRequest},
};

use super::{
    Identity, MembershipError, NodeKeys, SigningRequest, Token,
    tls::{self, certificate, joining_client, seed_server_name, sha256, unusable},
};
use crate::seed::JOIN_PATH;

/// How long a seed may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// Joins with the keys of `<state>/keys.json` and writes this node's identity; safe to repeat after a crash or a lost reply.
pub async fn join(
    state_dir: &Path,
    token: &Token,
    node: &NodeName,
    now_ms: u64,
) -> Result<(Identity, SeedJoinReply), MembershipError> {
    if let Some(identity) = Identity::load(state_dir)? {
        return Err(already_member(&identity));
    }
    let keys = NodeKeys::load_or_generate(state_dir)?;
    let (identity, reply) = join_via_token(token, node, &keys, now_ms).await?;
    identity.save(state_dir)?;
    Ok((identity, reply))
}

pub(super) fn already_member(identity: &Identity) -> MembershipError {
    let message = format!("this node is already a member of a fabric, as {} with {}", identity.node, identity.prefix);
    let hint = "to start over, stop netd and move its state directory away";
    MembershipError::Refused(ApiError::new(ErrorCode::Conflict, message, hint))
}

/// Asks a seed of the token for membership, after it has proved that it belongs to the CA that the token pins; the
/// secret leaves this node only then.
pub async fn join_via_token(
    token: &Token,
    node: &NodeName,
    keys: &NodeKeys,
    now_ms: u64,
) -> Result<(Identity, SeedJoinReply), MembershipError> {
    let request = SeedJoinRequest {
        token_id: token.id.clone(),
        secret: token.secret_text(),
        node: node.clone(),
        wireguard_public_key: keys.wireguard_public_key()?,
        csr_pem: keys.signing_request(node)?,
    };
    let client = Client::tls(token.seeds.clone(), joining_client(token.ca)?, seed_server_name());
    let reply: SeedJoinReply = client.with_deadline(DEADLINE).post(JOIN_PATH, &request).await?;

    let ca = certificate(&reply.fabric.ca_pem, "the CA in the seed's answer")?;
    if sha256(&ca) != token.ca {
        return Err(unusable("the CA in the seed's answer", &"it is not the one that the token pins"));
    }
    let certified = tls::verify_node(&reply.certificate_pem, &reply.fabric.ca_pem, now_ms)?;
    let own = SigningRequest::parse(&request.csr_pem)?.tls_key_sha256;
    if certified.node != *node || certified.tls_key_sha256 != own {
        return Err(unusable("the certificate that the seed issued", &"it is for another node or another key"));
    }
    let seeds = if reply.seeds.is_empty() { token.seeds.clone() } else { reply.seeds.clone() };
    let identity = Identity {
        node: node.clone(),
        prefix: reply.spec.prefix,
        seed: false,
        seeds,
        keys: keys.clone(),
        certificate_pem: reply.certificate_pem.clone(),
        ca_pem: reply.fabric.ca_pem.clone(),
    };
    Ok((identity, reply))
}
