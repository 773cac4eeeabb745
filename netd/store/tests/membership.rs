//! Init, tokens and joins: what is refused, what is safe to repeat, and that prefixes are unique.
#![allow(clippy::unwrap_used)] // also outside of the test functions themselves
mod support;

use std::{collections::HashSet, fs};

use futures_util::future::join_all;
use support::{Fabric, NOW, init, user};
use weft_model::{
    ApiError, ErrorCode,
    api::{SeedJoinRequest, TokenRequest},
    object::{Kind, NodeSpec, Role},
};
use weft_store::{
    ObjectExt, Store, StoreError,
    embedded::Embedded,
    membership::{
        Authority, Identity, MembershipError, NodeKeys, PrefixSpec, Token, TokenSpec, admit, create_token, init_fabric,
        join, join_via_token, remove_node,
    },
    seed::SeedStore,
};

fn altered(token: &Token, change: impl FnOnce(&mut Token)) -> Token {
    let mut token = token.clone();
    change(&mut token);
    token
}

fn api(error: MembershipError) -> ApiError {
    error.into()
}

async fn uses_left(fabric: &Fabric, id: &str) -> u32 {
    fabric.store.get(Kind::Token, id).await.unwrap().unwrap().read_spec::<TokenSpec>().unwrap().uses_left
}

#[tokio::test]
async fn init_makes_a_fabric_whose_first_node_is_a_seed() {
    let fabric = Fabric::start().await;
    let node = fabric.store.get(Kind::Node, "a").await.unwrap().unwrap();
    let spec: NodeSpec = node.read_spec().unwrap();
    assert_eq!(spec.roles, [Role::Seed]);
    assert!(fabric.fabric.prefixes[0].net().contains(&spec.prefix.net()));
    assert_eq!(spec.wireguard_public_key, fabric.identity.keys.wireguard_public_key().unwrap());
    assert_eq!(Identity::load(&fabric.state_dir("a")).unwrap().unwrap(), fabric.identity);
    assert!(
        fabric.identity.seed && !format!("{:?}", fabric.identity).contains(&fabric.identity.keys.wireguard_private_key)
    );
    let again = init_fabric(fabric.store.as_ref(), &fabric.state_dir("a"), &init(fabric.address), NOW).await;
    assert_eq!(api(again.unwrap_err()).code, ErrorCode::Conflict);
}

#[tokio::test]
async fn an_init_that_was_cut_off_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.db")).unwrap();
    let init = init("192.0.2.1:7443".parse().unwrap());
    // Cut off after the CA's file, after the keys' file, and after the transaction.
    Authority::generate(NOW).unwrap().save(dir.path()).unwrap();
    let authority = Authority::load(dir.path()).unwrap().unwrap();
    let keys = NodeKeys::load_or_generate(dir.path()).unwrap();
    let (first, fabric, node) = init_fabric(&store, dir.path(), &init, NOW).await.unwrap();
    assert_eq!((first.ca_pem.as_str(), &first.keys), (authority.ca_pem(), &keys));
    fs::remove_file(dir.path().join("identity.json")).unwrap();
    fs::write(dir.path().join("keys.json"), serde_json::to_vec(&with_schema(&keys)).unwrap()).unwrap();
    fs::set_permissions(dir.path().join("keys.json"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (second, fabric_again, node_again) = init_fabric(&store, dir.path(), &init, NOW).await.unwrap();
    assert_eq!((fabric_again, node_again), (fabric, node));
    assert_eq!((second.prefix, &second.keys, &second.ca_pem), (first.prefix, &first.keys, &first.ca_pem));
    assert_eq!(store.list(Kind::Node).await.unwrap().0.len(), 1);
    assert!(!dir.path().join("keys.json").exists());

    // Another question is not silently answered with what is there.
    fs::remove_file(dir.path().join("identity.json")).unwrap();
    let error = init_fabric(&store, dir.path(), &init, NOW).await.unwrap_err().to_string();
    assert!(error.contains("its first node is not a with this node's keys"), "{error}");
    fs::remove_file(dir.path().join("ca.json")).unwrap();
    let error = init_fabric(&store, dir.path(), &init, NOW).await.unwrap_err().to_string();
    assert!(error.contains("ca.json is missing"), "{error}");
}

fn with_schema(keys: &NodeKeys) -> serde_json::Value {
    let mut value = serde_json::to_value(keys).unwrap();
    value["schema"] = 1.into();
    value
}

#[tokio::test]
async fn a_token_admits_as_often_as_it_says_and_a_retry_is_no_use() {
    let fabric = Fabric::start().await;
    let (token, _) = fabric.token(2).await;
    let dir = fabric.state_dir("b");
    let keys = NodeKeys::load_or_generate(&dir).unwrap();
    let (lost, _) = join_via_token(&token, &"b".parse().unwrap(), &keys, NOW).await.unwrap();
    let (identity, reply) = join(&dir, &token, &"b".parse().unwrap(), NOW).await.unwrap();
    assert_eq!((identity.prefix, &identity.keys), (lost.prefix, &lost.keys));
    assert_eq!(uses_left(&fabric, &token.id).await, 1);
    assert_eq!((reply.seeds, reply.fabric), (vec![fabric.address], fabric.fabric.clone()));
    let node = fabric.store.get(Kind::Node, "b").await.unwrap().unwrap();
    assert_eq!(node.author.to_string(), format!("user token:{}", token.id), "history shows how it came in");

    join(&fabric.state_dir("c"), &token, &"c".parse().unwrap(), NOW).await.unwrap();
    let error = join(&fabric.state_dir("d"), &token, &"d".parse().unwrap(), NOW).await.unwrap_err();
    let error = api(error);
    assert_eq!(error.code, ErrorCode::Unauthorized);
    assert!(error.to_string().contains("is used up") && error.to_string().contains("netctl token create"), "{error}");
    assert_eq!(fabric.store.get(Kind::Node, "d").await.unwrap(), None, "nothing half-made stays");
    // The same keys again are answered even now.
    join_via_token(&token, &"b".parse().unwrap(), &keys, NOW).await.unwrap();
    let member = join(&dir, &token, &"b".parse().unwrap(), NOW).await.unwrap_err();
    assert_eq!(api(member).code, ErrorCode::Conflict);
}

#[tokio::test]
async fn expired_unknown_and_altered_tokens_are_refused() {
    let fabric = Fabric::start().await;
    let (token, reply) = fabric.token(1).await;
    let keys = NodeKeys::generate().unwrap();
    let refuse = async |token: &Token| api(join_via_token(token, &"b".parse().unwrap(), &keys, NOW).await.unwrap_err());
    let wrong_secret = refuse(&altered(&token, |token| token.secret = [0; 32])).await;
    let unknown = refuse(&altered(&token, |token| token.id = "ffff".into())).await;
    assert_eq!(wrong_secret, unknown, "which of the two it is stays hidden");
    assert_eq!(wrong_secret.code, ErrorCode::Unauthorized);
    let wrong_pin = refuse(&altered(&token, |token| token.ca = [1; 32])).await;
    assert!(wrong_pin.to_string().contains("not a seed of this fabric"), "{wrong_pin}");
    assert_eq!(uses_left(&fabric, &token.id).await, 1);

    let request = TokenRequest { ttl_s: 1, ..TokenRequest::default() };
    let past = NOW - 2000;
    let short =
        create_token(fabric.store.as_ref(), fabric.authority.pin(), &[fabric.address], &request, user(), past).await;
    let expired = refuse(&short.unwrap().token.parse().unwrap()).await;
    assert!(expired.to_string().contains("has expired"), "{expired}");
    assert_eq!(reply.expires_ms, NOW + 3_600_000);
}

#[tokio::test]
async fn another_fabrics_seed_is_not_trusted_with_the_secret() {
    let (ours, theirs) = (Fabric::start().await, Fabric::start().await);
    let (token, _) = ours.token(1).await;
    let redirected = altered(&token, |token| token.seeds = vec![theirs.address]);
    let keys = NodeKeys::generate().unwrap();
    let error = join_via_token(&redirected, &"b".parse().unwrap(), &keys, NOW).await.unwrap_err();
    assert!(error.to_string().contains("not a seed of this fabric"), "{error}");
    // The next endpoint is tried: one that is away does not spoil the token.
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let several = altered(&token, |token| token.seeds = vec![closed, theirs.address, ours.address]);
    join_via_token(&several, &"b".parse().unwrap(), &keys, NOW).await.unwrap();
}

#[tokio::test]
async fn a_name_or_a_key_that_is_taken_is_refused_with_a_way_out() {
    let fabric = Fabric::start().await;
    let joined = fabric.join("b").await;
    let (token, _) = fabric.token(3).await;
    let taken = api(join(&fabric.state_dir("x"), &token, &"b".parse().unwrap(), NOW).await.unwrap_err());
    assert_eq!((taken.code, taken.field.as_deref()), (ErrorCode::Conflict, Some("node")));
    assert!(taken.to_string().contains("--node"), "{taken}");
    let clone = api(join_via_token(&token, &"c".parse().unwrap(), &joined.keys, NOW).await.unwrap_err());
    assert!(clone.to_string().contains("node b has the same WireGuard key"), "{clone}");
    // A WireGuard key is public: with another TLS key it proves nothing.
    let stolen = NodeKeys {
        wireguard_private_key: joined.keys.wireguard_private_key.clone(),
        tls_private_key_pem: NodeKeys::generate().unwrap().tls_private_key_pem.clone(),
    };
    let error = join_via_token(&token, &"b".parse().unwrap(), &stolen, NOW).await.unwrap_err();
    assert_eq!(api(error).code, ErrorCode::Conflict);
    assert_eq!(uses_left(&fabric, &token.id).await, 3);
}

#[tokio::test]
async fn malformed_requests_to_join_use_nothing() {
    let fabric = Fabric::start().await;
    let (token, _) = fabric.token(1).await;
    let good = SeedJoinRequest {
        token_id: token.id.clone(),
        secret: token.to_string(),
        node: "b".parse().unwrap(),
        wireguard_public_key: NodeKeys::generate().unwrap().wireguard_public_key().unwrap(),
        csr_pem: "nonsense".into(),
    };
    let refused = async |request: SeedJoinRequest| {
        api(admit(fabric.store.as_ref(), &fabric.authority, &[], &request, NOW).await.unwrap_err()).to_string()
    };
    assert!(refused(good.clone()).await.contains("does not know this token"), "the secret is judged first");
    let text: serde_json::Value = serde_json::from_slice(&base64_url(&token.to_string())).unwrap();
    let good = SeedJoinRequest { secret: text["secret"].as_str().unwrap().into(), ..good };
    assert!(refused(good.clone()).await.contains("signing request cannot be read"));
    let csr = rcgen::CertificateParams::new(["x".to_owned()]).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let der = csr.serialize_request(&key).unwrap().der().to_vec();
    let mut broken = der.clone();
    *broken.last_mut().unwrap() ^= 1;
    let pem = |der: &[u8]| {
        use base64::Engine;
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
    };
    let unproved = SeedJoinRequest { csr_pem: pem(&broken), ..good.clone() };
    assert!(refused(unproved).await.contains("does not prove"));
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let other = SeedJoinRequest { csr_pem: csr.serialize_request(&ed25519).unwrap().pem().unwrap(), ..good.clone() };
    assert!(refused(other).await.contains("P-256"));
    for key in ["", "AAAA", &"A".repeat(43), "!"] {
        let bad = SeedJoinRequest { csr_pem: pem(&der), wireguard_public_key: key.into(), ..good.clone() };
        assert!(refused(bad).await.contains("WireGuard public key"), "{key}");
    }
    assert_eq!(uses_left(&fabric, &token.id).await, 1);
    let fine = SeedJoinRequest { csr_pem: pem(&der), ..good };
    admit(fabric.store.as_ref(), &fabric.authority, &[], &fine, NOW).await.unwrap();
}

fn base64_url(token: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.strip_prefix("weft1.").unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_join_at_once_get_prefixes_of_their_own() {
    let fabric = Fabric::start().await;
    let (token, _) = fabric.token(10).await;
    let names: Vec<String> = (0..12).map(|number| format!("n{number}")).collect();
    let joins = names.iter().map(|name| {
        let (token, dir) = (token.clone(), fabric.state_dir(name));
        async move { join(&dir, &token, &name.parse().unwrap(), NOW).await }
    });
    let outcomes = join_all(joins).await;
    let prefixes: HashSet<_> = outcomes.iter().flatten().map(|(identity, _)| identity.prefix).collect();
    assert_eq!(prefixes.len(), 10, "ten uses, ten nodes");
    let refused = outcomes.into_iter().filter_map(Result::err).map(api);
    assert!(refused.into_iter().all(|error| error.to_string().contains("is used up")));
    for claim in fabric.store.list(Kind::Prefix).await.unwrap().0 {
        let holder: PrefixSpec = claim.read_spec().unwrap();
        let node = fabric.store.get(Kind::Node, holder.node.as_str()).await.unwrap().unwrap();
        assert_eq!(node.read_spec::<NodeSpec>().unwrap().prefix.to_string(), claim.name);
    }
}

#[tokio::test]
async fn a_removed_node_is_refused_and_its_name_is_free_again() {
    let fabric = Fabric::start().await;
    let identity = fabric.join("b").await;
    let store = SeedStore::new(&identity).unwrap();
    store.list(Kind::Node).await.unwrap();
    remove_node(fabric.store.as_ref(), &"b".parse().unwrap(), user(), NOW).await.unwrap();
    let error = store.list(Kind::Node).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("join again with a new token"), "{error}");
    let (token, _) = fabric.token(1).await;
    join(&fabric.state_dir("new-b"), &token, &"b".parse().unwrap(), NOW).await.unwrap();
    let error = store.list(Kind::Node).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Refused { .. }),
        "the old certificate does not speak for the new node: {error}"
    );
    let seed = remove_node(fabric.store.as_ref(), &"a".parse().unwrap(), user(), NOW).await.unwrap_err();
    assert_eq!(api(seed).code, ErrorCode::Conflict);
}

#[tokio::test]
async fn requests_for_tokens_are_checked() {
    let fabric = Fabric::start().await;
    let store = fabric.store.as_ref();
    let base = TokenRequest::default();
    for (request, field) in [
        (TokenRequest { uses: 0, ..base.clone() }, "uses"),
        (TokenRequest { ttl_s: 0, ..base.clone() }, "ttl_s"),
        (TokenRequest { ttl_s: u64::MAX, ..base.clone() }, "ttl_s"),
        (TokenRequest { roles: vec![Role::Seed], ..base.clone() }, "roles"),
    ] {
        let error = create_token(store, [0; 32], &[fabric.address], &request, user(), NOW).await.unwrap_err();
        assert_eq!(api(error).field.as_deref(), Some(field));
    }
    let nowhere = create_token(store, [0; 32], &[], &base, user(), NOW).await.unwrap_err();
    assert_eq!(api(nowhere).code, ErrorCode::NotReady);
    assert_eq!(store.list(Kind::Token).await.unwrap().0, []);
}
