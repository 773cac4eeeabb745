//! Packets from IPv6 whose way leads back to IPv6: to a bound port of the pool (RFC 6146 3.8), or to the IPv4 address of
//! an explicitly mapped host (RFC 7757 4.2.2).
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Engine, Random, Stop};
use crate::{HEADROOM, Offload, PacketBuf, Reason, bytes::*, config::Mode};

impl Engine {
    /// A packet from IPv6, by the mode.
    pub(super) fn handle_six(
        &mut self,
        now: u64,
        random: Random<'_>,
        packet: &mut PacketBuf<'_>,
        offload: &mut Offload,
    ) -> Result<(), Stop> {
        let destination = array_at::<16>(packet.bytes(), 24).map(Ipv6Addr::from)?;
        let result = match self.config.mode {
            Mode::Nat64 => self.six_to_four(now, random, packet, offload),
            Mode::Siit => self.siit_six(now, packet, offload),
        };
        match result {
            Ok(()) if self.turns_back(destination, packet.bytes()) => self.turn_back(now, packet, offload),
            Err(Stop::Split(packets)) if packets.first().is_some_and(|one| self.turns_back(destination, one)) => {
                let mut out = Vec::new();
                for packet in packets {
                    self.turn_back_piece(now, &packet, &mut out)?;
                }
                Err(Stop::Split(out))
            }
            result => result,
        }
    }

    /// Whether a packet that was translated to IPv4 is for a host on the IPv6 side.
    fn turns_back(&self, destination: Ipv6Addr, packet: &[u8]) -> bool {
        let Ok(four) = array_at::<4>(packet, 16).map(Ipv4Addr::from) else { return false };
        match self.config.mode {
            Mode::Nat64 => self.config.hairpinning && self.ports.has_address(four.to_bits()),
            Mode::Siit => self.eam.four(destination).is_none() && self.eam.six(four).is_some(),
        }
    }

    fn turn_back(&mut self, now: u64, packet: &mut PacketBuf<'_>, offload: &mut Offload) -> Result<(), Stop> {
        match self.config.mode {
            Mode::Nat64 => self.trace.note(6146, "3.8", || "the destination is the pool's: hairpin".into()),
            Mode::Siit => {
                self.trace.note(7757, "4.2.2", || "the destination is an explicitly mapped host's: hairpin".into());
            }
        }
        match self.handle_four(now, packet, offload, true) {
            Err(Stop::Reply(reason, answer)) => {
                // The answer is for the sender, who is on the IPv6 side too.
                packet.replace(&answer)?;
                *offload = Offload::default();
                match self.handle_four(now, packet, offload, true) {
                    Ok(()) => Err(Stop::Reply(reason, packet.bytes().to_vec())),
                    Err(_) => Err(reason.into()),
                }
            }
            result => result,
        }
    }

    /// Turns one of several packets back.
    fn turn_back_piece(&mut self, now: u64, packet: &[u8], out: &mut Vec<Vec<u8>>) -> Result<(), Reason> {
        let mut buf = vec![0; HEADROOM + packet.len()];
        put(&mut buf, HEADROOM, packet)?;
        let end = buf.len();
        let mut packet = PacketBuf::new(&mut buf, HEADROOM, end).ok_or(Reason::Truncated)?;
        match self.turn_back(now, &mut packet, &mut Offload::default()) {
            Ok(()) => out.push(packet.bytes().to_vec()),
            Err(Stop::Split(more)) => out.extend(more),
            Err(Stop::Reply(_, answer)) => out.push(answer),
            Err(Stop::Drop(reason)) => return Err(reason),
        }
        Ok(())
    }
}
