//! The table `inet weft`, replaced whole and atomically through nft(8). Its comment carries two digests: of the text that
//! it was made from, and of what nft lists of it, so that a rule changed by hand shows.
use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use weft_plan::state::nft_digest;

use crate::{Error, Result};

fn run(arguments: &[&str], input: &str) -> Result<Output> {
    let failed = |error: std::io::Error| Error::Nft(error.to_string());
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(failed)?;
    }
    child.wait_with_output().map_err(failed)
}

/// The listing without the comment, or `None` if there is no table; with the comment's text.
fn list() -> Result<Option<(String, String)>> {
    let output = run(&["-n", "list", "table", "inet", "weft"], "")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return if error.contains("No such file") { Ok(None) } else { Err(Error::Nft(first_line(&error))) };
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let is_comment = |line: &&str| line.trim_start().starts_with("comment \"");
    let comment =
        text.lines().find(is_comment).map(|line| line.trim().trim_start_matches("comment ").trim_matches('"'));
    let rest: Vec<&str> = text.lines().filter(|line| !is_comment(line)).collect();
    Ok(Some((rest.join("\n"), comment.unwrap_or_default().to_owned())))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("no message").to_owned()
}

/// The digest of the text that the table was made from; `None` if there is no table or somebody changed it.
pub(crate) fn observe() -> Result<Option<String>> {
    let Some((listing, comment)) = list()? else { return Ok(None) };
    let intact = comment.split_once(" / ").filter(|(_, of_listing)| *of_listing == nft_digest(&listing));
    Ok(intact.map(|(of_text, _)| of_text.to_owned()))
}

fn put(text: &str, comment: &str) -> Result<()> {
    let script =
        format!("table inet weft\ndelete table inet weft\ntable inet weft {{\n  comment \"{comment}\"\n{text}}}\n");
    let output = run(&["-f", "-"], &script)?;
    if output.status.success() { Ok(()) } else { Err(Error::Nft(first_line(&String::from_utf8_lossy(&output.stderr)))) }
}

/// Replaces the table.
pub(crate) fn replace(text: &str) -> Result<()> {
    put(text, &nft_digest(text))?;
    let Some((listing, _)) = list()? else { return Ok(()) };
    put(text, &format!("{} / {}", nft_digest(text), nft_digest(&listing)))
}

/// Deletes the table.
pub(crate) fn delete() -> Result<()> {
    let output = run(&["-f", "-"], "table inet weft\ndelete table inet weft\n")?;
    if output.status.success() { Ok(()) } else { Err(Error::Nft(first_line(&String::from_utf8_lossy(&output.stderr)))) }
}
