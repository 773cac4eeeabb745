//! The command line, as clap reads it.
use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use ipnet::Ipv4Net;
use weft_model::{Label, WorkspaceId, object::Role};

/// The command line of a Weft node.
#[derive(Debug, Parser)]
#[command(
    name = "netctl",
    version,
    about = "The command line of a Weft node: one address a workspace, and every packet explained",
    after_help = "Exit codes: 0 done, 1 failed (for explain: not ready), 2 wrong usage, 3 not found, 4 conflict, 5 netd or the store does not answer.\n\nExamples:\n  netctl init --domain ws.example.dev --role proxy     # the first node of a fabric\n  netctl token create                                  # then, on another node: netctl join TOKEN\n  netctl attach /run/netns/box --name box --port 8080  # a workspace with a URL\n  netctl explain workspace box                         # what is done, what waits for what"
)]
pub(crate) struct Args {
    /// The socket of the node's netd.
    #[arg(long, global = true, env = "WEFT_SOCKET", default_value = "/run/weft/netd.sock", value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// Print JSON, errors too.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a fabric, with this node as its first and its seed
    #[command(after_help = "Example: netctl init --prefix fd12:3456:789a::/48 --domain ws.example.dev --role proxy")]
    Init(Init),
    /// Let other nodes join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make this node part of the fabric that a token names
    #[command(after_help = "Example: netctl join \"$TOKEN\" --node b")]
    Join {
        /// The token, as `netctl token create` printed it on another node
        token: String,
        /// This node's name; the host name's first label if absent
        #[arg(long)]
        node: Option<String>,
    },
    /// Attach a network namespace as a workspace
    #[command(
        after_help = "Examples:\n  netctl attach /run/netns/box --name box --group team --port 8080 --public\n  netctl attach /proc/4711/ns/net --owner ann\n  netctl attach /run/netns/box --name box     # a stopped workspace of that name starts again"
    )]
    Attach(Attach),
    /// Detach a workspace: its link and address go, its identity and URLs stay
    Detach {
        /// The workspace's id or name
        workspace: String,
        /// Delete it for good: its id is never used again
        #[arg(long)]
        forget: bool,
    },
    /// List the fabric's workspaces
    #[command(visible_alias = "ls")]
    List,
    /// Show one workspace
    Show {
        /// The workspace's id or name
        workspace: String,
    },
    /// Show this node: its fabric, its peers, its drops
    Status,
    /// List the fabric's nodes
    Nodes,
    /// Show which targets are done, running, waiting or failed, and why
    #[command(after_help = "Examples:\n  netctl explain\n  netctl explain workspace box")]
    Explain {
        #[command(subcommand)]
        what: Option<Explain>,
    },
    /// Show who changed a workspace, when and what
    History {
        /// The workspace's id or name
        workspace: String,
    },
    /// Give a port of a workspace a URL
    #[command(after_help = "Example: netctl expose box 8080 --public")]
    Expose {
        /// The workspace's id or name
        workspace: String,
        /// The TCP port
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// Everybody who can reach the proxy may open it
        #[arg(long)]
        public: bool,
    },
    /// Take a port's URL away
    Unexpose {
        /// The workspace's id or name
        workspace: String,
        /// The TCP port
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// The fabric's prefix; a random ULA /48 if absent
    #[arg(long, value_name = "PREFIX")]
    pub(crate) prefix: Option<String>,
    /// The domain of names and URLs; weft.internal if absent
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// This node's name; the host name's first label if absent
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// What this node does besides: proxy, gateway, relay (repeatable)
    #[arg(long)]
    pub(crate) role: Vec<Role>,
    /// A private IPv4 range that workspaces may reach (repeatable); none by default
    #[arg(long, value_name = "CIDR")]
    pub(crate) nat64_private: Vec<Ipv4Net>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is shown once
    #[command(after_help = "Example: netctl token create --uses 3 --ttl 10m --role proxy")]
    Create {
        /// How many nodes may join with it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// For how long: 30s, 10m, 1h, 7d
        #[arg(long, default_value = "1h", value_parser = duration)]
        ttl: Duration,
        /// What the joining node does besides (repeatable)
        #[arg(long)]
        role: Vec<Role>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Attach {
    /// The network namespace: /run/netns/NAME or /proc/PID/ns/net
    pub(crate) netns: PathBuf,
    /// Attach this workspace, which exists already
    #[arg(long)]
    pub(crate) id: Option<WorkspaceId>,
    /// Its name, unique in the fabric
    #[arg(long)]
    pub(crate) name: Option<Label>,
    /// Its owner; the caller if absent
    #[arg(long)]
    pub(crate) owner: Option<String>,
    /// Its group: members reach each other
    #[arg(long)]
    pub(crate) group: Option<Label>,
    /// A TCP port that gets a URL (repeatable, or with commas)
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Vec<u16>,
    /// Everybody who can reach the proxy may open these ports
    #[arg(long)]
    pub(crate) public: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Explain {
    /// This node
    Node,
    /// A workspace, and the node that it is on
    Workspace {
        /// The workspace's id or name
        workspace: String,
    },
}

/// Reads `30s`, `10m`, `1h` or `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is no time: write a number with s, m, h or d, as in 1h");
    let unit = text.chars().last().ok_or_else(error)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(error()),
    };
    let number: u64 = text.strip_suffix(unit).and_then(|number| number.parse().ok()).ok_or_else(error)?;
    number.checked_mul(factor).filter(|seconds| *seconds > 0).map(Duration::from_secs).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "1", "h", "-1h", "1w", "0s", "99999999999999999999d", "ü"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_attach_is_read_as_it_is_written() {
        let line = [
            "netctl",
            "--socket",
            "/x",
            "attach",
            "/run/netns/b",
            "--name",
            "b",
            "--port",
            "80,8080",
            "--port",
            "1",
            "--public",
        ];
        let Command::Attach(attach) = Args::parse_from(line).command else { panic!("not an attach") };
        assert_eq!(attach.port, [80, 8080, 1]);
        assert!(attach.public);
        for bad in
            [["attach", "/n", "--port", "0"], ["attach", "/n", "--name", "A_b"], ["expose", "b", "70000", "--public"]]
        {
            let line = ["netctl"].into_iter().chain(bad);
            assert_eq!(Args::try_parse_from(line).unwrap_err().exit_code(), 2, "{bad:?}");
        }
    }
}
