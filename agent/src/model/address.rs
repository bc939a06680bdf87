//! Addresses as documents write them: frontends and backend addresses, read and checked.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::service::{Frontend, Protocol};

/// Why a text or an address cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?} is no address: write 10.0.0.1:80 or [fd00::1]:80")]
    Form(String),
    #[error("{0:?} is no frontend: write 10.0.0.1:80, [fd00::1]:80 or 10.0.0.1:53/udp")]
    FrontendForm(String),
    #[error("{0:?} is no protocol: write tcp or udp")]
    Protocol(String),
    #[error("port 0 is no port: choose one from 1 to 65535")]
    PortZero,
    #[error("{0} is the unspecified address: name one host")]
    Unspecified(IpAddr),
    #[error("{0} is a multicast or broadcast address: name one host")]
    Multicast(IpAddr),
    #[error("{0} has a zone: addresses that are valid on one link only cannot be steered")]
    Zone(SocketAddr),
}

/// `address` with an IPv4-mapped IPv6 address turned into its IPv4 address: one form for both, as in the kernel.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V4(ip), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Whether connections can be steered from or to `address`.
///
/// # Errors
/// When the port is 0 or the address is not that of one host.
pub fn check(address: SocketAddr) -> Result<(), AddressError> {
    let ip = address.ip();
    if address.port() == 0 {
        Err(AddressError::PortZero)
    } else if ip.is_unspecified() {
        Err(AddressError::Unspecified(ip))
    } else if ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()) {
        Err(AddressError::Multicast(ip))
    } else if matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0 || v6.flowinfo() != 0) {
        Err(AddressError::Zone(address))
    } else {
        Ok(())
    }
}

/// Reads a backend's address. An IPv4-mapped address becomes IPv4; the rest of [`check`] is left to the caller.
///
/// # Errors
/// When `text` is not `IP:port`.
pub fn parse(text: &str) -> Result<SocketAddr, AddressError> {
    text.parse().map(canonical).map_err(|_| AddressError::Form(text.to_owned()))
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            other => Err(AddressError::Protocol(other.to_owned())),
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => f.pad(&self.address.to_string()),
            Protocol::Udp => f.pad(&format!("{}/udp", self.address)),
        }
    }
}

impl FromStr for Frontend {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (address, protocol) = match text.split_once('/') {
            Some((address, protocol)) => (address, protocol.parse()?),
            None => (text, Protocol::Tcp),
        };
        let address = address.parse().map_err(|_| AddressError::FrontendForm(text.to_owned()))?;
        Ok(Self { address: canonical(address), protocol })
    }
}

impl Serialize for Frontend {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Frontend {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// `#[serde(with = "address::text")]` for a backend's address.
pub mod text {
    use super::{Deserialize, Deserializer, Serializer, SocketAddr};
    use serde::de::Error as _;

    pub fn serialize<S: Serializer>(address: &SocketAddr, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(address)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
        super::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_are_read_and_written() {
        for (text, written) in [
            ("10.96.0.10:80", "10.96.0.10:80"),
            ("10.96.0.10:80/tcp", "10.96.0.10:80"),
            ("10.96.0.10:53/udp", "10.96.0.10:53/udp"),
            ("[fd00:96::10]:80", "[fd00:96::10]:80"),
            ("[::ffff:10.0.0.1]:80/udp", "10.0.0.1:80/udp"),
        ] {
            assert_eq!(text.parse::<Frontend>().unwrap().to_string(), written, "{text}");
        }
        for (text, why) in [
            ("shop:80", "no frontend"),
            ("10.0.0.1", "no frontend"),
            ("10.0.0.1:99999", "no frontend"),
            ("10.0.0.1:80/sctp", "no protocol"),
            ("", "no frontend"),
        ] {
            let error = text.parse::<Frontend>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn addresses_of_no_single_host_are_refused() {
        for (text, why) in [
            ("10.0.0.1:0", "port 0"),
            ("0.0.0.0:80", "unspecified"),
            ("[::]:80", "unspecified"),
            ("[::ffff:0.0.0.0]:80", "unspecified"),
            ("224.0.0.1:80", "multicast"),
            ("255.255.255.255:80", "broadcast"),
            ("[ff02::1]:80", "multicast"),
            ("[fe80::1%3]:80", "zone"),
        ] {
            let error = check(parse(text).unwrap()).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
        for text in ["127.0.0.1:1", "10.0.0.1:65535", "[::1]:80", "[fe80::1]:80"] {
            assert_eq!(check(parse(text).unwrap()), Ok(()), "{text}");
        }
        assert!(parse("10.0.0.1:80/tcp").is_err());
    }
}
