//! What of a configuration the types cannot check.
use super::{Config, ConfigError, Filtering, Mode};
use crate::{rfc6052::Prefix, rfc7757::EamTable};

impl Config {
    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let name = !self.tun.is_empty() && self.tun.len() <= 15;
        if !name || !self.tun.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            return Err(ConfigError::Tun(self.tun.clone()));
        }
        let range = |field, value: u64, least: u64, most: u64, says| {
            if (least..=most).contains(&value) { Ok(()) } else { Err(ConfigError::Range(field, value, says)) }
        };
        range("queues", self.queues.into(), 1, 64, "1 to 64")?;
        range("mtu6", self.mtu6.into(), 1280, 65_535, "1280 to 65535 (1280 is IPv6's least)")?;
        range("mtu4", self.mtu4.into(), 576, 65_535, "576 to 65535")?;
        range("limits.sessions", self.limits.sessions.into(), 1, 16_000_000, "1 to 16000000")?;
        range("limits.sessions_per_source", self.limits.sessions_per_source.into(), 1, 16_000_000, "1 to 16000000")?;
        range("timers.udp", self.timers.udp.into(), 1, 86_400, "1 to 86400 seconds (RFC 6146: at least 120)")?;
        range("timers.icmp", self.timers.icmp.into(), 1, 86_400, "1 to 86400 seconds (RFC 6146: at least 60)")?;
        let (established, transitory) = (self.timers.tcp_established, self.timers.tcp_transitory);
        range(
            "timers.tcp_established",
            established.into(),
            1,
            864_000,
            "1 to 864000 seconds (RFC 6146: at least 7440)",
        )?;
        range("timers.tcp_transitory", transitory.into(), 1, 86_400, "1 to 86400 seconds (RFC 6146: at least 240)")?;
        match self.mode {
            Mode::Nat64 => self.validate_nat64()?,
            Mode::Siit => self.validate_siit()?,
        }
        self.validate_prefixes()
    }

    fn validate_nat64(&self) -> Result<(), ConfigError> {
        if self.sources.is_empty() {
            return Err(ConfigError::Empty("sources", "IPv6 prefix whose packets are translated"));
        }
        if self.prefix.is_empty() {
            return Err(ConfigError::Empty("prefix", "[[prefix]], for example 64:ff9b::/96"));
        }
        for (field, given) in [("eam", !self.eam.is_empty()), ("icmp_sources", !self.icmp_sources.is_empty())] {
            if given {
                return Err(ConfigError::Mode(field, "nat64"));
            }
        }
        self.validate_pool()?;
        self.validate_static()
    }

    fn validate_siit(&self) -> Result<(), ConfigError> {
        let of_nat64 = [
            ("sources", !self.sources.is_empty()),
            ("pool.addresses", !self.pool.addresses.is_empty()),
            ("static", !self.static_bindings.is_empty()),
            ("hairpinning", self.hairpinning),
            ("filtering", self.filtering != Filtering::default()),
        ];
        if let Some((field, _)) = of_nat64.into_iter().find(|(_, given)| *given) {
            return Err(ConfigError::Mode(field, "siit"));
        }
        if self.prefix.is_empty() && self.eam.is_empty() {
            return Err(ConfigError::Empty("prefix and eam", "[[prefix]] or [[eam]]"));
        }
        EamTable::new(&self.eam)?;
        Ok(())
    }

    fn validate_static(&self) -> Result<(), ConfigError> {
        for (index, one) in self.static_bindings.iter().enumerate() {
            if !self.sources.iter().any(|net| net.contains(one.six.ip())) || one.six.port() == 0 {
                return Err(ConfigError::StaticSource(one.six));
            }
            if !self.pool.addresses.contains(one.four.ip()) || one.four.port() == 0 {
                return Err(ConfigError::StaticPool(one.four));
            }
            for other in self.static_bindings.iter().skip(index + 1).filter(|other| other.protocol == one.protocol) {
                if other.six == one.six {
                    return Err(ConfigError::StaticTwice(one.six.to_string()));
                }
                if other.four == one.four {
                    return Err(ConfigError::StaticTwice(one.four.to_string()));
                }
            }
        }
        Ok(())
    }

    fn validate_pool(&self) -> Result<(), ConfigError> {
        if self.pool.addresses.is_empty() {
            return Err(ConfigError::Empty("pool.addresses", "IPv4 address of this node"));
        }
        for (index, address) in self.pool.addresses.iter().enumerate() {
            if address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_loopback() {
                return Err(ConfigError::PoolAddress(*address));
            }
            if self.pool.addresses.iter().skip(index + 1).any(|other| other == address) {
                return Err(ConfigError::PoolTwice(*address));
            }
        }
        Ok(())
    }

    fn validate_prefixes(&self) -> Result<(), ConfigError> {
        if self.prefix.len() > 255 {
            return Err(ConfigError::Range("number of [[prefix]]", self.prefix.len() as u64, "255 at most"));
        }
        for (index, one) in self.prefix.iter().enumerate() {
            Prefix::new(one.prefix)?;
            for other in self.prefix.iter().skip(index + 1) {
                if one.prefix.contains(&other.prefix) || other.prefix.contains(&one.prefix) {
                    return Err(ConfigError::PrefixOverlap(one.prefix, other.prefix));
                }
                if let Some(range) = one.permit.overlap(&other.permit) {
                    return Err(ConfigError::PermitOverlap(one.prefix, other.prefix, range));
                }
            }
        }
        Ok(())
    }
}
