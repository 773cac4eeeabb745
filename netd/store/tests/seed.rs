//! The seed's API as strangers, members and impostors meet it, and watches that outlive the seed.
#![allow(clippy::unwrap_used)] // also outside of the test functions themselves
mod support;

use std::{sync::Arc, time::Instant};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use support::{Fabric, NOW, address_on, next, node, user};
use weft_client::{Client, ClientError};
use weft_model::{
    ApiError, ErrorCode,
    object::{Author, Kind},
};
use weft_store::{
    Change, Store, StoreError, Txn,
    membership::{Identity, NodeKeys, SEED_NAME},
    seed::SeedStore,
};

const ONE: &str = "aaaaaaaaaa";

/// A workspace that a node attaches, at an address of its own.
async fn workspace(fabric: &Fabric, on: &str) -> Txn {
    let address = address_on(fabric.store.as_ref(), on).await;
    let status = json!({"attachment": {"node": on, "address": address, "epoch": 1, "since_ms": NOW}});
    Txn::new(node(on), NOW).put_both(Kind::Workspace, ONE, &json!({"owner": "u"}), &status)
}

fn client(fabric: &Fabric, config: Arc<ClientConfig>, name: &str) -> Client {
    Client::tls(vec![fabric.address], config, ServerName::try_from(name.to_owned()).unwrap())
}

/// A client that trusts the fabric's CA and shows no certificate.
fn stranger(fabric: &Fabric) -> Client {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(fabric.identity.ca_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    client(fabric, Arc::new(config.with_root_certificates(roots).with_no_client_auth()), SEED_NAME)
}

fn refusal(outcome: Result<Value, ClientError>) -> ApiError {
    match outcome {
        Err(ClientError::Api(error)) => error,
        other => panic!("not refused by the API: {other:?}"),
    }
}

#[tokio::test]
async fn without_a_certificate_only_join_answers() {
    let fabric = Fabric::start().await;
    let stranger = stranger(&fabric);
    for path in [
        "/v1/seed/get?kind=node&name=a",
        "/v1/seed/list?kind=node",
        "/v1/seed/history?kind=node&name=a",
        "/v1/seed/watch?from=0",
        "/v1/seed/join",
        "/v1/seed/nothing",
        "/",
    ] {
        assert_eq!(refusal(stranger.get(path).await).code, ErrorCode::Unauthorized, "{path}");
    }
    let commit = stranger.post("/v1/seed/commit", &Txn::new(user(), NOW)).await;
    assert_eq!(refusal(commit).code, ErrorCode::Unauthorized);
    let malformed = refusal(stranger.post("/v1/seed/join", &json!({"token_id": 7})).await);
    assert_eq!(malformed.code, ErrorCode::Invalid);
    let huge = json!({"token_id": "x".repeat(20_000)});
    assert_eq!(refusal(stranger.post("/v1/seed/join", &huge).await).code, ErrorCode::Invalid);
}

#[tokio::test]
async fn a_certificate_of_another_ca_does_not_get_through_the_handshake() {
    let (ours, theirs) = (Fabric::start().await, Fabric::start().await);
    let foreign = theirs.join("b").await;
    let mixed = Identity { ca_pem: ours.identity.ca_pem.clone(), seeds: vec![ours.address], ..foreign };
    let error = SeedStore::new(&mixed).unwrap().list(Kind::Node).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("refuses this node's certificate"), "{error}");
}

#[tokio::test]
async fn a_member_cannot_pose_as_the_seed() {
    let fabric = Fabric::start().await;
    let member = fabric.join("b").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = weft_store::seed::SeedState {
        store: fabric.store.clone(),
        authority: fabric.authority.clone(),
        seeds: vec![address],
        clock: || NOW,
    };
    let impostor = member.clone();
    let serving =
        tokio::spawn(async move { weft_store::seed::serve(listener, &impostor, state, std::future::pending()).await });
    let victim = Identity { seeds: vec![address], ..fabric.join("c").await };
    let error = SeedStore::new(&victim).unwrap().list(Kind::Node).await.unwrap_err();
    assert!(error.to_string().contains("not a seed of this fabric"), "{error}");
    serving.abort();
}

#[tokio::test]
async fn a_node_cannot_act_as_another() {
    let fabric = Fabric::start().await;
    let (b, c) = (fabric.join("b").await, fabric.join("c").await);
    let (store_b, store_c) = (SeedStore::new(&b).unwrap(), SeedStore::new(&c).unwrap());
    let as_c = Txn::new(node("c"), NOW).put_status(Kind::Node, "c", &json!({"ready": true}));
    let error = store_b.commit(as_c.clone()).await.unwrap_err();
    assert!(error.to_string().contains("node b may not write as node c"), "{error}");
    let honest = Txn::new(node("b"), NOW).put_status(Kind::Node, "c", &json!({"ready": true}));
    assert!(matches!(store_b.commit(honest).await.unwrap_err(), StoreError::NotOwner { .. }));
    store_c.commit(as_c).await.unwrap();

    // Not even with keys and a name that do not belong together.
    let mixed = Identity { certificate_pem: c.certificate_pem.clone(), ..b.clone() };
    assert!(SeedStore::new(&mixed).is_err());
    // The limit on users comes from the certificate, whatever the body says.
    let raw = json!({"compares": [], "writes": [], "author": {"user": "root"}, "via": null, "time_ms": 1});
    let outcome: Value =
        client(&fabric, b.client_config().unwrap(), SEED_NAME).post("/v1/seed/commit", &raw).await.unwrap();
    assert!(outcome.get("Ok").is_some(), "{outcome}");
    let grab = Txn::new(user(), NOW).put_spec(Kind::Fabric, "fabric", &fabric.fabric);
    store_b.commit(grab).await.unwrap();
    let mut changed = fabric.fabric.clone();
    changed.nat64_private = vec!["10.0.0.0/8".parse().unwrap()];
    let grab = Txn::new(user(), NOW).put_spec(Kind::Fabric, "fabric", &changed);
    let error = store_b.commit(grab).await.unwrap_err();
    assert!(error.to_string().contains("the users of a seed node"), "{error}");
}

#[tokio::test]
async fn users_of_a_node_change_its_workspaces_and_history_names_them() {
    let fabric = Fabric::start().await;
    let (b, c) = (fabric.joined_store("b").await, fabric.joined_store("c").await);
    b.commit(workspace(&fabric, "b").await).await.unwrap();
    let expose = |name: &str| {
        let spec = json!({"owner": "u", "ports": [{"port": 8080, "visibility": name}]});
        Txn::new(Author::User("alice".into()), NOW).put_spec(Kind::Workspace, ONE, &spec)
    };
    b.commit(expose("public")).await.unwrap();
    let newest = fabric.store.history(Kind::Workspace, ONE).await.unwrap().remove(0);
    assert_eq!(newest.object.author, Author::User("alice@b".into()));
    let error = c.commit(expose("private")).await.unwrap_err();
    assert!(error.to_string().contains("the users of node b, where it is attached"), "{error}");
}

#[tokio::test]
async fn a_node_cannot_point_its_workspace_at_anothers_address() {
    let fabric = Fabric::start().await;
    let (b, _) = (fabric.joined_store("b").await, fabric.join("c").await);
    let mut txn = workspace(&fabric, "b").await;
    let stolen = address_on(fabric.store.as_ref(), "c").await;
    if let Some(weft_store::Write::Put { status: Some(status), .. }) = txn.writes.first_mut() {
        status["attachment"]["address"] = stolen.clone().into();
    }
    let error = b.commit(txn).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { .. }) && error.to_string().contains(&stolen), "{error}");
}

#[tokio::test]
async fn two_workspaces_cannot_share_a_name() {
    let fabric = Fabric::start().await;
    let put = |id: &str, name: &str| {
        Txn::new(user(), NOW).put_spec(Kind::Workspace, id, &json!({"owner": "u", "name": name}))
    };
    fabric.store.commit(put(ONE, "web")).await.unwrap();
    let error = fabric.store.commit(put("bbbbbbbbbb", "web")).await.unwrap_err();
    assert!(matches!(&error, StoreError::Taken { by, .. } if by == "workspace aaaaaaaaaa"), "{error}");
    fabric.store.commit(put(ONE, "other")).await.unwrap();
    fabric.store.commit(put("bbbbbbbbbb", "web")).await.unwrap();
}

#[tokio::test]
async fn nodes_never_see_tokens() {
    let fabric = Fabric::start().await;
    let store = fabric.joined_store("b").await;
    let from = support::revision(&store).await;
    let mut watch = store.watch(from).await.unwrap();
    let (token, _) = fabric.token(1).await;
    fabric.store.commit(workspace(&fabric, "a").await).await.unwrap();
    let Some(Change::Put(object)) = next(&mut watch).await else { panic!("the workspace is missing") };
    assert_eq!(object.kind, Kind::Workspace, "the token before it is left out");
    assert!(matches!(store.get(Kind::Token, &token.id).await.unwrap_err(), StoreError::Refused { .. }));
    assert!(matches!(store.list(Kind::Token).await.unwrap_err(), StoreError::Refused { .. }));
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_when_the_seed_comes_back() {
    let mut fabric = Fabric::start().await;
    let store = fabric.joined_store("b").await;
    let from = support::revision(&store).await;
    let mut watch = store.watch(from).await.unwrap();
    fabric.store.commit(workspace(&fabric, "a").await).await.unwrap();
    assert!(matches!(next(&mut watch).await, Some(Change::Put(_))));

    fabric.stop().await;
    let began = Instant::now();
    let error = store.commit(workspace(&fabric, "b").await).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    let missed = fabric.store.commit(Txn::new(user(), NOW).delete(Kind::Workspace, ONE)).await.unwrap();
    fabric.restart().await;
    let gone = Change::Delete { kind: Kind::Workspace, name: ONE.into(), revision: missed };
    assert_eq!(next(&mut watch).await, Some(gone), "what happened meanwhile is not lost, and nothing comes twice");
    store.commit(workspace(&fabric, "b").await).await.unwrap();
    assert!(matches!(next(&mut watch).await, Some(Change::Put(_))));
}

#[tokio::test]
async fn a_seed_that_is_silent_is_given_up_soon() {
    let fabric = Fabric::start().await;
    let identity = fabric.join("b").await;
    // It accepts connections by its backlog, and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = Identity { seeds: vec![silent.local_addr().unwrap()], ..identity.clone() };
    let began = Instant::now();
    let error = SeedStore::new(&away).unwrap().commit(workspace(&fabric, "b").await).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(began.elapsed().as_millis() < 4000, "{:?}", began.elapsed());
    let several = Identity { seeds: vec![silent.local_addr().unwrap(), fabric.address], ..identity };
    SeedStore::new(&several).unwrap().commit(workspace(&fabric, "b").await).await.unwrap();
}

#[test]
fn keys_that_are_damaged_are_errors() {
    let keys = NodeKeys { wireguard_private_key: "AAAA".into(), tls_private_key_pem: String::new() };
    assert!(keys.wireguard_public_key().unwrap_err().to_string().contains("32 bytes"));
}
