//! The API over its socket, on a data path that is a table in memory: what is answered, refused, remembered and published.
#![allow(clippy::unwrap_used, reason = "tests may stop at the first thing that does not hold")]
mod fake;

use fake::{Fixture, error, try_until, until};
use serde_json::{Value, json};
use weft_client::Client;
use weft_model::{
    ErrorCode,
    api::{MemberReply, RouteEvent, StatusView, TokenReply, WorkspaceView},
    targets::{Explanation, TargetState},
};

async fn attach(client: &Client, body: Value) -> WorkspaceView {
    client.post("/v1/workspaces", &body).await.unwrap()
}

async fn list(client: &Client) -> Vec<WorkspaceView> {
    client.get("/v1/workspaces").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_no_member_says_how_to_become_one() {
    let fixture = Fixture::new();
    let client = fixture.start();
    for path in ["/v1/workspaces", "/v1/nodes", "/v1/workspaces/x", "/v1/routes/watch", "/v1/explain/workspaces/x"] {
        let refused = error(client.get::<Value>(path).await);
        assert_eq!(refused.code, ErrorCode::NotReady, "{path}");
        assert!(refused.hint.unwrap().contains("netctl init"), "{path}");
    }
    let refused = error(client.post::<_, Value>("/v1/workspaces", &json!({"netns": fixture.netns("a")})).await);
    assert_eq!(refused.code, ErrorCode::NotReady);
    let refused = error(client.post::<_, Value>("/v1/tokens", &json!({})).await);
    assert_eq!(refused.code, ErrorCode::NotReady);
    let status: StatusView = client.get("/v1/status").await.unwrap();
    assert!(status.member.is_none() && !status.ready);
    until("identity to wait", || async {
        let explained: Explanation = client.get("/v1/explain/node").await.unwrap();
        explained.targets[0].reason.as_deref().is_some_and(|reason| reason.contains("netctl init"))
    })
    .await;
    assert_eq!(error(client.get::<Value>("/v1/nothing").await).code, ErrorCode::NotFound);
    assert_eq!(error(client.post::<_, Value>("/v1/status", &json!({})).await).code, ErrorCode::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn init_refuses_what_it_cannot_use_and_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let client = fixture.start();
    for (body, field) in [
        (json!({"prefix": "fe80::/48"}), Some("prefix")),
        (json!({"prefix": "10.0.0.0/8"}), Some("prefix")),
        (json!({"domain": "under_score.dev"}), Some("domain")),
        (json!({"node": "Not A Label"}), Some("node")),
        (json!({"node": "a", "nat64_private": ["8.8.8.0/24"]}), Some("nat64_private")),
        (json!({"prefx": "fd12::/48"}), None),
        (json!({"roles": ["king"]}), None),
    ] {
        let refused = error(client.post::<_, Value>("/v1/init", &body).await);
        assert_eq!((refused.code, refused.field.as_deref()), (ErrorCode::Invalid, field), "{body}");
        assert!(refused.hint.is_some(), "{body}");
    }
    assert!(!fixture.state("identity.json").exists());
    let refused = error(client.post::<_, Value>("/v1/join", &json!({"token": "nonsense", "node": "b"})).await);
    assert_eq!((refused.code, refused.field.as_deref()), (ErrorCode::Invalid, Some("token")));
    let body = json!({"prefix": "fd12:3456:789a::/48", "node": "a", "domain": "WS.example.dev."});
    let member: MemberReply = client.post("/v1/init", &body).await.unwrap();
    assert_eq!((member.node.as_str(), member.domain.as_str()), ("a", "ws.example.dev"));
    assert_eq!(error(client.post::<_, Value>("/v1/init", &body).await).code, ErrorCode::Conflict);
    let token: TokenReply = client.post("/v1/tokens", &json!({"uses": 2})).await.unwrap();
    assert!(!token.token.is_empty() && token.expires_ms > 0);
    assert_eq!(error(client.post::<_, Value>("/v1/tokens", &json!({"uses": 0})).await).code, ErrorCode::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_is_listed_published_explained_and_refused_twice() {
    let fixture = Fixture::new();
    let client = fixture.member().await;
    let netns = fixture.netns("a");
    let view =
        attach(&client, json!({"netns": netns, "name": "box", "group": "team", "ports": [{"port": 8080}]})).await;
    assert_eq!(view.urls, ["https://8080-box.ws.dev/"]);
    assert_eq!(view.owner, "root");
    assert!(fixture.kernel.links().contains(&view.id));
    let refused = error(client.post::<_, Value>("/v1/workspaces", &json!({"netns": netns})).await);
    assert_eq!(refused.code, ErrorCode::Conflict);
    assert!(refused.message.contains(view.id.as_str()) && refused.message.contains("box"), "{refused}");
    until("the workspace to be ready", || async {
        client.get::<Explanation>("/v1/explain/workspaces/box").await.unwrap().ready()
    })
    .await;
    assert!(list(&client).await[0].published);
    let history: Vec<Value> = client.get("/v1/workspaces/box/history").await.unwrap();
    assert_eq!(history[0]["author"]["node"], "a");
    let explained: Explanation = client.get("/v1/explain/workspaces/box").await.unwrap();
    let names: Vec<&str> = explained.targets.iter().map(|target| target.name.as_str()).collect();
    assert_eq!(names, ["address", "link", "policy", "clat", "published", "ready"]);
    assert!(explained.node.iter().any(|target| target.name == "underlay"));
    client.delete::<Value>("/v1/workspaces/box").await.unwrap();
    assert!(fixture.kernel.links().is_empty());
    let stopped = list(&client).await;
    assert_eq!((stopped.len(), stopped[0].address, stopped[0].node.clone()), (1, None, None));
    let refused = error(client.get::<Value>("/v1/explain/workspaces/box").await);
    assert!(refused.message.contains("stopped"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_attaches_name_the_field_and_leave_nothing() {
    let fixture = Fixture::new();
    let client = fixture.member().await;
    let netns = fixture.netns("a");
    let many: Vec<Value> = (1..=65).map(|port| json!({"port": port})).collect();
    for (body, code, field) in [
        (json!({"netns": "/run/netns/none"}), ErrorCode::Invalid, Some("netns")),
        (json!({"netns": ""}), ErrorCode::Invalid, Some("netns")),
        (json!({}), ErrorCode::Invalid, None),
        (json!({"netns": netns, "name": "Bad_Name"}), ErrorCode::Invalid, None),
        (json!({"netns": netns, "color": "red"}), ErrorCode::Invalid, None),
        (json!({"netns": netns, "ports": [{"port": 0}]}), ErrorCode::Invalid, Some("port")),
        (json!({"netns": netns, "ports": [{"port": 80}, {"port": 80}]}), ErrorCode::Invalid, Some("ports")),
        (json!({"netns": netns, "ports": many}), ErrorCode::Limit, Some("ports")),
        (json!({"netns": netns, "owner": ""}), ErrorCode::Invalid, Some("owner")),
        (json!({"netns": netns, "id": "aaaaaaaaaa"}), ErrorCode::NotFound, Some("id")),
    ] {
        let refused = error(client.post::<_, Value>("/v1/workspaces", &body).await);
        assert_eq!((refused.code, refused.field.as_deref()), (code, field), "{body}: {refused}");
        assert!(refused.hint.is_some(), "{body}");
    }
    fixture.kernel.fail_attach("no memory for a link");
    let refused = error(client.post::<_, Value>("/v1/workspaces", &json!({"netns": netns, "name": "box"})).await);
    assert!(refused.message.contains("no memory"), "{refused}");
    assert!(list(&client).await.is_empty());
    assert!(fixture.journal().entries().unwrap().is_empty());
    attach(&client, json!({"netns": netns, "name": "box"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unknown_is_not_found_by_every_call() {
    let fixture = Fixture::new();
    let client = fixture.member().await;
    for result in [
        client.get::<Value>("/v1/workspaces/nobody").await,
        client.delete::<Value>("/v1/workspaces/nobody").await,
        client.put::<_, Value>("/v1/workspaces/nobody/ports/80", &json!({})).await,
        client.delete::<Value>("/v1/workspaces/nobody/ports/80").await,
        client.get::<Value>("/v1/explain/workspaces/nobody").await,
        client.get::<Value>("/v1/workspaces/nobody/history").await,
    ] {
        let refused = error(result);
        assert_eq!(refused.code, ErrorCode::NotFound);
        assert!(refused.message.contains("nobody") && refused.hint.unwrap().contains("netctl list"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_workspaces_are_bounded() {
    let fixture = Fixture::with(|config| config.max_workspaces = 2);
    let client = fixture.member().await;
    attach(&client, json!({"netns": fixture.netns("a")})).await;
    attach(&client, json!({"netns": fixture.netns("b")})).await;
    let refused = error(client.post::<_, Value>("/v1/workspaces", &json!({"netns": fixture.netns("c")})).await);
    assert_eq!(refused.code, ErrorCode::Limit);
    assert!(refused.hint.unwrap().contains("max_workspaces"));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_attaches_at_once_give_each_its_own_address() {
    let fixture = Fixture::new();
    let client = fixture.member().await;
    let attaches = (0..32).map(|number| {
        let (client, netns) = (client.clone(), fixture.netns(&format!("n{number}")));
        tokio::spawn(async move { attach(&client, json!({"netns": netns, "name": format!("box-{number}")})).await })
    });
    let mut addresses = std::collections::BTreeSet::new();
    for view in attaches.collect::<Vec<_>>() {
        addresses.insert(view.await.unwrap().address.unwrap());
    }
    assert_eq!(addresses.len(), 32);
    until("all to be published", || async { list(&client).await.iter().all(|view| view.published) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_unique_and_a_stopped_workspace_starts_again_by_it() {
    let fixture = Fixture::new();
    let client = fixture.member().await;
    let (first, second) = (fixture.netns("a"), fixture.netns("b"));
    let view = attach(&client, json!({"netns": first, "name": "box", "owner": "ann", "ports": [{"port": 80}]})).await;
    let refused = error(client.post::<_, Value>("/v1/workspaces", &json!({"netns": second, "name": "box"})).await);
    assert_eq!((refused.code, refused.field.as_deref()), (ErrorCode::Conflict, Some("name")));
    let refused = error(client.post::<_, Value>("/v1/workspaces", &json!({"netns": second, "id": view.id})).await);
    assert_eq!((refused.code, refused.field.as_deref()), (ErrorCode::Conflict, Some("id")));
    until("it to be published", || async { list(&client).await[0].published }).await;
    client.delete::<Value>("/v1/workspaces/box").await.unwrap();
    until("the store to know", || async { list(&client).await[0].node.is_none() }).await;
    let body = json!({"netns": second, "name": "box", "owner": "bob"});
    assert_eq!(error(client.post::<_, Value>("/v1/workspaces", &body).await).code, ErrorCode::Conflict);
    let again = attach(&client, json!({"netns": second, "name": "box", "group": "team"})).await;
    assert_eq!((again.id, again.owner.as_str()), (view.id, "ann"));
    assert_eq!(again.urls, ["https://80-box.ws.dev/"]);
    assert_eq!(again.group.unwrap().as_str(), "team");
    until("its new spec to be published", || async { list(&client).await[0].published }).await;
    let history: Vec<Value> = client.get("/v1/workspaces/box/history").await.unwrap();
    assert!(
        history.iter().any(|version| version["author"]["user"] == "root" && version["spec"]["group"] == "team"),
        "{history:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_exposed_and_listeners_hear_of_it() {
    let fixture = Fixture::new();
    let client = fixture.member().await;
    let view = attach(&client, json!({"netns": fixture.netns("a"), "name": "box"})).await;
    let mut events = client.events("/v1/routes/watch").await.unwrap();
    let mut next = async || -> RouteEvent {
        let event = futures_util::StreamExt::next(&mut events).await.unwrap().unwrap();
        serde_json::from_str(&event.data).unwrap()
    };
    let RouteEvent::Snapshot { domain, routes, .. } = next().await else { panic!("no snapshot first") };
    assert_eq!((domain.as_str(), routes.len(), routes[0].address), ("ws.dev", 1, view.address));
    let exposed: WorkspaceView =
        client.put("/v1/workspaces/box/ports/8080", &json!({"visibility": "public"})).await.unwrap();
    assert_eq!(exposed.urls, ["https://8080-box.ws.dev/"]);
    let RouteEvent::Upsert { route } = next().await else { panic!("no upsert") };
    assert_eq!(route.ports[0].port, 8080);
    for bad in ["0", "70000", "x"] {
        let path = format!("/v1/workspaces/box/ports/{bad}");
        assert_eq!(error(client.put::<_, Value>(&path, &json!({})).await).code, ErrorCode::Invalid);
    }
    assert_eq!(error(client.delete::<Value>("/v1/workspaces/box/ports/81").await).code, ErrorCode::NotFound);
    client.delete::<Value>("/v1/workspaces/box/ports/8080").await.unwrap();
    let RouteEvent::Upsert { route } = next().await else { panic!("no upsert") };
    assert!(route.ports.is_empty());
    client.delete::<Value>("/v1/workspaces/box?forget=true").await.unwrap();
    assert_eq!(next().await, RouteEvent::Remove { id: view.id });
    assert!(list(&client).await.is_empty());
    assert_eq!(error(client.delete::<Value>("/v1/workspaces/box").await).code, ErrorCode::NotFound);
    until("the store to have deleted it", || async { fixture.journal().forgotten().unwrap().is_empty() }).await;
    let history: Vec<Value> = client.get(&format!("/v1/workspaces/{}/history", view.id)).await.unwrap();
    assert_eq!(history[0]["deleted"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_adopts_completes_and_gives_up() {
    let fixture = Fixture::new();
    let client = fixture.member().await;
    let paths = ["kept", "relinked", "gone"].map(|name| fixture.netns(name));
    for (path, name) in paths.iter().zip(["kept", "relinked", "gone"]) {
        attach(&client, json!({"netns": path, "name": name})).await;
    }
    until("all to be published", || async { list(&client).await.iter().all(|view| view.published) }).await;
    let before = list(&client).await;
    fixture.stop().await;
    let id = |name: &str| before.iter().find(|view| view.name.as_ref().unwrap().as_str() == name).unwrap().id;
    fixture.kernel.lose(id("relinked"));
    fixture.kernel.lose(id("gone"));
    std::fs::remove_file(&paths[2]).unwrap();
    let client = fixture.start();
    try_until("the restart to settle", || async {
        let now = client.get::<Vec<WorkspaceView>>("/v1/workspaces").await?;
        let address =
            |views: &[WorkspaceView], name| views.iter().find(|view| view.id == id(name)).and_then(|view| view.address);
        Ok(address(&now, "gone").is_none()
            && address(&now, "kept") == address(&before, "kept")
            && address(&now, "relinked") == address(&before, "relinked")
            && fixture.kernel.links() == [id("kept"), id("relinked")].into()
            && now.iter().all(|view| view.published))
    })
    .await;
    let mut events = client.events("/v1/routes/watch").await.unwrap();
    let event = futures_util::StreamExt::next(&mut events).await.unwrap().unwrap();
    let RouteEvent::Snapshot { routes, .. } = serde_json::from_str(&event.data).unwrap() else { panic!("no snapshot") };
    for view in list(&client).await {
        let route = routes.iter().find(|route| route.id == view.id).unwrap();
        assert_eq!(route.address, view.address, "a restart tells listeners the same addresses");
    }
    let explained: Explanation = client.get("/v1/explain/workspaces/relinked").await.unwrap();
    assert!(explained.targets.iter().all(|target| target.state != TargetState::Failed), "{explained:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_vanishes_fails_its_target_and_comes_back() {
    let fixture = Fixture::new();
    let client = fixture.member().await;
    let view = attach(&client, json!({"netns": fixture.netns("a"), "name": "box"})).await;
    fixture.kernel.lose(view.id);
    until("the link to be made again", || async { fixture.kernel.links().contains(&view.id) }).await;
    until("it to be ready", || async {
        client.get::<Explanation>("/v1/explain/workspaces/box").await.unwrap().ready()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsound_kernel_is_said_and_nothing_is_attached_to_it() {
    let fixture = Fixture::new();
    fixture.kernel.fail_reconcile(Some("nftables refuses the table"));
    let client = fixture.member().await;
    let refused = error(client.post::<_, Value>("/v1/workspaces", &json!({"netns": fixture.netns("a")})).await);
    assert_eq!(refused.code, ErrorCode::Unavailable);
    assert!(refused.message.contains("nftables refuses"), "{refused}");
    fixture.kernel.fail_reconcile(None);
    attach(&client, json!({"netns": fixture.netns("a")})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_processes_get_their_files_and_metrics_are_served() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new();
    let client = fixture.member().await;
    attach(&client, json!({"netns": fixture.netns("a"), "name": "box"})).await;
    until("dns.json to name the workspace", || async {
        std::fs::read_to_string(fixture.run("dns.json")).is_ok_and(|text| text.contains("\"box\""))
    })
    .await;
    let wire = fixture.state("wire.conf");
    assert_eq!(std::fs::metadata(&wire).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(wire).unwrap().contains("PrivateKey"));
    let nat64 = std::fs::read_to_string(fixture.run("nat64.toml")).unwrap();
    assert!(nat64.contains("198.18.0.1") && nat64.contains("16384-29999"), "{nat64}");
    let page = fixture.raw_get("/metrics").await;
    for name in
        ["weft_workspaces 1", "weft_member 1", "weft_target_ready{target=\"underlay\"}", "weft_attach_seconds_count 1"]
    {
        assert!(page.contains(name), "{name} is missing in {page}");
    }
    assert_eq!(std::fs::metadata(fixture.run("netd.sock")).unwrap().permissions().mode() & 0o777, 0o600);
}
