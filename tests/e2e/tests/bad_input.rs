//! What is wrong is refused with a clear error and the way out, and leaves nothing half-made behind.
use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use weft_lab::{
    Fabric, Topology,
    checks::{Check, Outcome},
    probe::udp_echo,
    spawn::bin,
};
use weft_model::api::{StatusView, TokenReply, WorkspaceView};
use weft_test_support::wait_until;

const CHECKS: &[Check] = &[
    Check { name: "fabric-prefix", promise: "a bad fabric prefix makes no fabric", run: fabric_prefix },
    Check { name: "init-again", promise: "a member makes no second fabric", run: init_again },
    Check { name: "token", promise: "a token: garbage, used twice, expired, of nobody", run: tokens },
    Check {
        name: "nothing-half-made",
        promise: "a refused node has no link, route or rule of ours",
        run: nothing_half_made,
    },
    Check { name: "attach", promise: "attach: no netns, no such netns, attached already", run: attach },
    Check { name: "workspace", promise: "an unknown workspace or port, by netctl", run: unknown_workspace },
    Check { name: "url", promise: "an unknown workspace, port or name in a URL", run: unknown_url },
    Check { name: "truncated", promise: "truncated and random packets for WireGuard", run: truncated },
    Check { name: "not-root", promise: "without root: one sentence, nothing changed", run: not_root },
];

fn main() -> ExitCode {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies/bad-input.toml");
    weft_e2e::exit(Topology::load(&path).and_then(|topology| weft_e2e::run(topology, CHECKS)))
}

/// Fails unless netctl fails and its error has every one of the words.
fn refused(fabric: &Fabric, node: &str, arguments: &[&str], words: &[&str]) -> Result<String> {
    match fabric.netctl::<Value>(node, arguments) {
        Ok(answer) => bail!("netctl {} was not refused: {answer}", arguments.join(" ")),
        Err(error) => {
            let text = format!("{error:#}");
            for word in words {
                ensure!(text.to_lowercase().contains(&word.to_lowercase()), "{text:?} does not say {word:?}");
            }
            // Without the command line: it is long, and is the promise's subject.
            Ok(text
                .split_once(&format!("{}: ", arguments.join(" ")))
                .map_or(text.clone(), |(_, error)| error.to_owned()))
        }
    }
}

fn fabric_prefix(fabric: &Fabric) -> Result<Outcome> {
    refused(fabric, "d", &["init", "--prefix", "fd00::/64", "--node", "d"], &["fd00::/64", "32 to 60"])?;
    refused(fabric, "d", &["init", "--prefix", "10.0.0.0/8", "--node", "d"], &["10.0.0.0/8", "address/length"])?;
    refused(fabric, "d", &["init", "--prefix", "fd00::1/48", "--node", "d"], &["fd00::/48"])?;
    refused(fabric, "d", &["init", "--prefix", "fd00:ec2::/48", "--node", "d"], &["fd00:ec2::"])?;
    refused(fabric, "d", &["init", "--node", "Not_A_Label"], &["Not_A_Label"])?;
    outside(fabric, "d")?;
    Ok(Outcome::default())
}

fn outside(fabric: &Fabric, node: &str) -> Result<()> {
    let status: StatusView = fabric.netctl(node, &["status"])?;
    ensure!(status.member.is_none(), "node {node} became a member: {:?}", status.member);
    Ok(())
}

fn init_again(fabric: &Fabric) -> Result<Outcome> {
    let before: StatusView = fabric.netctl("a", &["status"])?;
    refused(fabric, "a", &["init", "--node", "a"], &["a"])?;
    let after: StatusView = fabric.netctl("a", &["status"])?;
    let prefix = |status: &StatusView| status.member.as_ref().map(|member| member.prefix);
    ensure!(prefix(&before) == prefix(&after), "the node's prefix changed");
    Ok(Outcome::default())
}

fn tokens(fabric: &Fabric) -> Result<Outcome> {
    refused(fabric, "d", &["join", "weft1.nonsense", "--node", "d"], &["token"])?;
    let once: TokenReply = fabric.netctl("a", &["token", "create"])?;
    let _: Value = fabric.netctl("c", &["join", &once.token, "--node", "c"])?;
    let spent = refused(fabric, "d", &["join", &once.token, "--node", "d"], &["token"])?;
    let short: TokenReply = fabric.netctl("a", &["token", "create", "--ttl", "1s"])?;
    wait_until("the token's end", Duration::from_secs(5), || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .is_ok_and(|now| now.as_millis() > u128::from(short.expires_ms) + 50)
    })?;
    refused(fabric, "d", &["join", &short.token, "--node", "d"], &["token", "expired"])?;
    // A name that is taken, with a good token: the token must not be the reason given.
    let good: TokenReply = fabric.netctl("a", &["token", "create"])?;
    refused(fabric, "d", &["join", &good.token, "--node", "b"], &["b"])?;
    refused(fabric, "c", &["join", &good.token, "--node", "c"], &[])?;
    outside(fabric, "d")?;
    Ok(spent.into())
}

fn nothing_half_made(fabric: &Fabric) -> Result<Outcome> {
    let links = fabric.lab().ip("d", &["-br", "link"])?;
    ensure!(!links.contains("weft"), "node d has links of ours: {links}");
    let routes = fabric.lab().ip("d", &["-6", "route", "show", "table", "all", "proto", "87"])?;
    ensure!(routes.trim().is_empty(), "node d has routes of ours: {routes}");
    let rules = fabric.lab().run("d", &["nft", "list", "tables"])?;
    ensure!(!rules.contains("weft"), "node d has rules of ours: {rules}");
    Ok(Outcome::default())
}

fn attach(fabric: &Fabric) -> Result<Outcome> {
    let list = || fabric.netctl::<Vec<WorkspaceView>>("a", &["list"]).map(|list| list.len());
    let before = list()?;
    let shown = refused(fabric, "a", &["attach", "/run/netns/no-such-netns"], &["/run/netns/no-such-netns"])?;
    refused(fabric, "a", &["attach", "/etc/hostname"], &["/etc/hostname"])?;
    refused(fabric, "a", &["attach", "/etc"], &["/etc"])?;
    let amber = fabric.lab().netns("amber").to_string_lossy().into_owned();
    refused(fabric, "a", &["attach", &amber], &["attached"])?;
    refused(fabric, "a", &["attach", &amber, "--name", "other"], &["attached"])?;
    let fresh = fabric.lab().add_machine("fresh", None)?.to_string_lossy().into_owned();
    refused(fabric, "a", &["attach", &fresh, "--name", "amber"], &["amber"])?;
    refused(fabric, "a", &["attach", &fresh, "--id", "aaaaaaaaaa"], &["aaaaaaaaaa"])?;
    refused(fabric, "d", &["attach", &fresh], &["init", "join"])?;
    ensure!(list()? == before, "a refused attach left a workspace in the list");
    let links = fabric.lab().ip("fresh", &["-br", "link"])?;
    ensure!(!links.contains("eth0"), "a refused attach left a link: {links}");
    Ok(shown.into())
}

fn unknown_workspace(fabric: &Fabric) -> Result<Outcome> {
    for arguments in [
        ["show", "nobody"].as_slice(),
        &["detach", "nobody"],
        &["expose", "nobody", "8080"],
        &["unexpose", "nobody", "8080"],
        &["explain", "workspace", "nobody"],
    ] {
        refused(fabric, "a", arguments, &["nobody"])?;
    }
    refused(fabric, "a", &["expose", "amber", "0"], &["0"])?;
    Ok(Outcome::default())
}

fn unknown_url(fabric: &Fabric) -> Result<Outcome> {
    let authority = fabric.pki().ca.to_string_lossy().into_owned();
    let mut shown = String::new();
    for host in
        ["8080-aaaaaaaaaa.ws.test", "8080-nobody.ws.test", "9999-amber.ws.test", "080-amber.ws.test", "amber.ws.test"]
    {
        let url = format!("https://{host}/");
        let format = "\n%{http_code}";
        let said =
            fabric.lab().run("visitor", &["curl", "-sS", "-m", "5", "--cacert", &authority, "-w", format, &url])?;
        let (body, code) = said.rsplit_once('\n').context("curl gives no status")?;
        ensure!(code.starts_with('4'), "{url} is answered with {code}: {body}");
        ensure!(!body.trim().is_empty(), "{url} is answered with {code} and not a word");
        shown = format!("{code} {}", body.trim().lines().next().unwrap_or_default());
    }
    Ok(shown.into())
}

fn truncated(fabric: &Fabric) -> Result<Outcome> {
    let target: SocketAddr = "198.18.0.11:51820".parse()?;
    let sent = fabric.lab().on("mallory", || -> std::io::Result<usize> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let mut sent = 0;
        // Every type, known and unknown, at every length around the real messages' 148, 92, 64 and 32 bytes.
        for kind in 0u8..=5 {
            for length in (0usize..=160).chain([1000, 1472]) {
                let fill = u8::try_from(length % 251).unwrap_or(0);
                let mut message = vec![fill; length];
                message.iter_mut().zip([kind, 0, 0, 0]).for_each(|(byte, head)| *byte = head);
                socket.send_to(&message, target)?;
                sent += 1;
            }
        }
        Ok(sent)
    })?;
    let ended = fabric.lab().ended();
    ensure!(ended.is_empty(), "ended: {ended:?}");
    udp_echo(fabric.lab(), "birch", fabric.echo("amber")?, "after the noise").context("the tunnel after the noise")?;
    Ok(format!("{} datagrams", sent.context("mallory cannot send")?).into())
}

/// Runs each program as nobody, from a copy that nobody can read.
fn not_root(_fabric: &Fabric) -> Result<Outcome> {
    const NOBODY: u32 = 65534;
    let copy = tempfile::tempdir()?;
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755))?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut shown = String::new();
    for (source, arguments) in [
        (root.join("labs/demo"), vec!["--once"]),
        (root.join("tests/run"), vec![]),
        (bin("lab")?, vec!["demo", "--once"]),
        (bin("netd")?, vec!["run"]),
    ] {
        let name = source.file_name().context("a path without a name")?;
        let folder = copy.path().join("folder");
        fs::create_dir_all(&folder)?;
        let program = folder.join(name);
        fs::copy(&source, &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let output = Command::new(&program).args(arguments).uid(NOBODY).gid(NOBODY).current_dir("/").output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
        ensure!(!output.status.success(), "{} worked without root", program.display());
        ensure!(said.contains("root"), "{} does not name root: {said}", source.display());
        ensure!(said.lines().count() == 1, "{} says more than one sentence: {said}", source.display());
        shown = said;
    }
    Ok(shown.into())
}
