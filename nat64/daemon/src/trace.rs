//! `nat64 trace`: what a translator with this configuration would make of packets, and by which rules.
use std::io::Write;

use anyhow::Context;
use serde::Serialize;
use weft_nat64_core::{Config, Engine, HEADROOM, Offload, PacketBuf, Step, Verdict};

/// Room for an answer that is longer than the packet.
const ROOM: usize = 2_048;
/// No packet is longer: an IPv6 header and its payload.
const LONGEST: usize = 40 + 65_535;

/// What became of a packet.
#[derive(Serialize)]
struct Traced {
    packet: String,
    steps: Vec<Step>,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    packets: Vec<String>,
}

/// Translates packets one after the other, so that a later one finds what an earlier one opened, and prints how.
pub(crate) fn run(config: Config, packets: &[String], json: bool) -> anyhow::Result<()> {
    // Always the same ports and identifications for the same packets: nothing here is sent.
    let mut engine = Engine::new(config, 0, [1, 2])?;
    let mut drawn = 0u64;
    let traced = packets
        .iter()
        .map(|text| {
            let packet = parse(text)?;
            let mut random = || {
                drawn = drawn.wrapping_add(0x9e37_79b9_7f4a_7c15);
                (drawn ^ drawn >> 31).wrapping_mul(0x94d0_49bb_1331_11eb)
            };
            trace(&mut engine, &mut random, &packet)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &traced)?;
        writeln!(out)?;
        return Ok(());
    }
    for (number, one) in traced.iter().enumerate() {
        writeln!(out, "packet {}: {}", number + 1, one.packet)?;
        for step in &one.steps {
            writeln!(out, "  RFC {} {:<7} {}", step.rfc, step.section, step.text)?;
        }
        let reason = one.reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        writeln!(out, "  {}{reason}", one.verdict)?;
        for packet in &one.packets {
            writeln!(out, "  {packet}")?;
        }
    }
    Ok(())
}

fn trace(engine: &mut Engine, random: &mut dyn FnMut() -> u64, packet: &[u8]) -> anyhow::Result<Traced> {
    let mut buf = vec![0; HEADROOM];
    buf.extend_from_slice(packet);
    let end = buf.len();
    buf.resize(end.max(HEADROOM + ROOM), 0);
    let mut view = PacketBuf::new(&mut buf, HEADROOM, end).context("the packet is longer than its buffer")?;
    let (verdict, steps) = engine.explain(0, random, &mut view, &mut Offload::default());
    let (verdict, reason, packets) = match verdict {
        Verdict::Forward => ("forward", None, vec![hex(view.bytes())]),
        Verdict::Split(packets) => ("split", None, packets.iter().map(|packet| hex(packet)).collect()),
        Verdict::Reply(reason) => ("reply", Some(reason.text()), vec![hex(view.bytes())]),
        Verdict::Drop(reason) => ("drop", Some(reason.text()), Vec::new()),
    };
    Ok(Traced { packet: hex(packet), steps, verdict, reason, packets })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A packet's bytes; spaces and colons between them are ignored, as programs that show packets write them.
fn parse(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|character| !character.is_whitespace() && *character != ':')
        .map(|character| character.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()
        .with_context(|| format!("{text:?} is no packet in hex: give its bytes from the IP header on, 0-9 and a-f"))?;
    anyhow::ensure!(
        digits.len().is_multiple_of(2) && !digits.is_empty() && digits.len() / 2 <= LONGEST,
        "a packet of {} hex digits cannot be: give 2 for each byte, of 1 to {LONGEST} bytes",
        digits.len()
    );
    Ok(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_read_as_programs_write_it() {
        assert_eq!(parse("45 00:0014\nfF").unwrap(), [0x45, 0, 0, 0x14, 0xff]);
        assert_eq!(hex(&parse("4500ff").unwrap()), "4500ff");
        for (wrong, says) in [("", "0 hex digits"), ("450", "3 hex digits"), ("45zz", "is no packet in hex")] {
            assert!(parse(wrong).unwrap_err().to_string().contains(says), "{wrong}");
        }
    }
}
