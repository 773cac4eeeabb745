//! netctl: what an operator types. Thin on purpose: it talks to netd's socket and prints; it makes no kernel calls.
mod args;
mod show;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use weft_client::{Client, ClientError, encode};
use weft_model::{
    ApiError, ErrorCode,
    api::{
        AttachRequest, ExposeRequest, InitRequest, JoinRequest, MemberReply, StatusView, TokenReply, TokenRequest,
        WorkspaceView,
    },
    object::{Port, Visibility},
    targets::Explanation,
};

use args::{Args, Command, Explain, TokenCommand};

/// What a command shows: a text for people, and the same as JSON.
struct Answer {
    text: String,
    json: Value,
    ok: bool,
}

impl Answer {
    fn new(text: String, value: &impl Serialize) -> Result<Self, ClientError> {
        let json = serde_json::to_value(value)
            .map_err(|error| ClientError::Request { path: "the answer".into(), reason: error.to_string() })?;
        Ok(Self { text, json, ok: true })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let json = args.json;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(json, &ApiError::new(ErrorCode::Internal, format!("cannot start: {error}"), "try again"));
        }
    };
    match runtime.block_on(run(args)) {
        Ok(answer) => {
            let text = if json { format!("{:#}\n", answer.json) } else { answer.text };
            // A reader that has gone away, as `netctl list | head` leaves it, is no failure.
            let _ = io::stdout().write_all(text.as_bytes());
            if answer.ok { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            let error = match error {
                // Here the client's own text says more than a code and a hint.
                ClientError::NotRunning { .. } | ClientError::PermissionDenied { .. } => {
                    let text = error.to_string();
                    let (message, hint) =
                        text.split_once("; ").or(text.split_once(": run")).unwrap_or((&text, "try again"));
                    ApiError::new(ErrorCode::Unavailable, message, hint)
                }
                other => other.into(),
            };
            fail(json, &error)
        }
    }
}

/// Prints an error, and gives the exit code that scripts can tell it by.
fn fail(json: bool, error: &ApiError) -> ExitCode {
    let text = if json { format!("{:#}\n", serde_json::json!({ "error": error })) } else { show::error(error) };
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(match error.code {
        ErrorCode::NotFound => 3,
        ErrorCode::Conflict => 4,
        ErrorCode::Unavailable => 5,
        _ => 1,
    })
}

async fn run(args: Args) -> Result<Answer, ClientError> {
    let client = Client::unix(&args.socket).with_deadline(std::time::Duration::from_secs(30));
    match args.command {
        Command::Init(init) => {
            let request = InitRequest {
                prefix: init.prefix,
                domain: init.domain,
                node: init.node,
                roles: init.role,
                nat64_private: init.nat64_private,
            };
            let reply: MemberReply = client.post("/v1/init", &request).await?;
            Answer::new(show::member("This node is the first of a new fabric.", &reply), &reply)
        }
        Command::Token(TokenCommand::Create { uses, ttl, role }) => {
            let request = TokenRequest { uses, ttl_s: ttl.as_secs(), roles: role };
            let reply: TokenReply = client.post("/v1/tokens", &request).await?;
            Answer::new(format!("{}\n", reply.token), &reply)
        }
        Command::Join { token, node } => {
            let reply: MemberReply = client.post("/v1/join", &JoinRequest { token, node }).await?;
            Answer::new(show::member("This node has joined the fabric.", &reply), &reply)
        }
        Command::Attach(attach) => {
            let request = attach_request(attach)?;
            let reply: WorkspaceView = client.post("/v1/workspaces", &request).await?;
            Answer::new(show::workspace(&reply), &reply)
        }
        Command::Detach { workspace, forget } => {
            let query = if forget { "?forget=true" } else { "" };
            let reply: Value = client.delete(&format!("/v1/workspaces/{}{query}", encode(&workspace))).await?;
            let what = if forget { "detached and deleted" } else { "detached" };
            Answer::new(format!("workspace {workspace} is {what}\n"), &reply)
        }
        command => run_reading(&client, command).await,
    }
}

/// The commands that look, and those that change a port.
async fn run_reading(client: &Client, command: Command) -> Result<Answer, ClientError> {
    match command {
        Command::List => reading(client, "/v1/workspaces", |list: &Vec<WorkspaceView>| show::workspaces(list)).await,
        Command::Show { workspace } => reading(client, &path(&workspace), show::workspace).await,
        Command::Status => reading(client, "/v1/status", |status: &StatusView| show::status(status)).await,
        Command::Nodes => reading(client, "/v1/nodes", |nodes: &Vec<Value>| show::nodes(nodes)).await,
        Command::History { workspace } => {
            let path = format!("{}/history", path(&workspace));
            reading(client, &path, |versions: &Vec<Value>| show::history(versions)).await
        }
        Command::Explain { what } => {
            let path = match what.unwrap_or(Explain::Node) {
                Explain::Node => "/v1/explain/node".into(),
                Explain::Workspace { workspace } => format!("/v1/explain/workspaces/{}", encode(&workspace)),
            };
            let explanation: Explanation = client.get(&path).await?;
            let answer = Answer::new(show::explanation(&explanation, now_ms()), &explanation)?;
            Ok(Answer { ok: explanation.ready(), ..answer })
        }
        Command::Expose { workspace, port, public } => {
            let visibility = if public { Visibility::Public } else { Visibility::Private };
            let path = format!("{}/ports/{port}", path(&workspace));
            let reply: WorkspaceView = client.put(&path, &ExposeRequest { visibility }).await?;
            Answer::new(show::urls(&reply), &reply)
        }
        Command::Unexpose { workspace, port } => {
            let reply: WorkspaceView = client.delete(&format!("{}/ports/{port}", path(&workspace))).await?;
            Answer::new(show::urls(&reply), &reply)
        }
        _ => unreachable!("run() takes the rest"),
    }
}

async fn reading<T: DeserializeOwned + Serialize>(
    client: &Client,
    path: &str,
    show: impl Fn(&T) -> String,
) -> Result<Answer, ClientError> {
    let reply: T = client.get(path).await?;
    Answer::new(show(&reply), &reply)
}

fn path(workspace: &str) -> String {
    format!("/v1/workspaces/{}", encode(workspace))
}

fn attach_request(attach: args::Attach) -> Result<AttachRequest, ClientError> {
    // netd has another working directory: a relative path would mean something else there.
    let netns = std::path::absolute(&attach.netns).map_err(|error| {
        let error =
            ApiError::new(ErrorCode::Invalid, format!("no such path: {error}"), "give the path of a network namespace");
        ClientError::Api(error.blame("netns", attach.netns.display()))
    })?;
    let visibility = if attach.public { Visibility::Public } else { Visibility::Private };
    Ok(AttachRequest {
        netns,
        id: attach.id,
        name: attach.name,
        owner: attach.owner,
        group: attach.group,
        ports: attach.port.into_iter().map(|port| Port { port, visibility }).collect(),
    })
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
