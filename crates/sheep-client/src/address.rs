//! Where a sheep listens, as people write it.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use sheep_proto::limits::DEFAULT_PORT;

/// Longest host part in bytes, that of a DNS name.
const MAX_HOST_LEN: usize = 253;

/// Host and port of a sheep: a name, an IPv4 or an IPv6 address.
///
/// ```
/// use sheep_client::GatewayAddress;
///
/// let address: GatewayAddress = "[fe80::1]:7001".parse()?;
/// assert_eq!((address.host(), address.port()), ("fe80::1", 7001));
/// assert_eq!("sheep1".parse::<GatewayAddress>()?.port(), 7000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    host: String,
    port: u16,
}

/// Text that is no address of a sheep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadAddress {
    /// Nothing before the port.
    #[error("'{0}' has no host name or address")]
    NoHost(String),
    /// A port that is no number between 1 and 65535.
    #[error("'{}' is not a port (1 to 65535)", .0.escape_debug())]
    Port(String),
    /// A host that no resolver takes.
    #[error("'{}' is not a host name or address", .0.escape_debug())]
    Host(String),
}

impl GatewayAddress {
    /// Reads `HOST`, `HOST:PORT`, `[IPV6]:PORT` or a bare IPv6 address;
    /// `default_port` is used when none is given.
    ///
    /// # Errors
    /// [`BadAddress`] says which part is wrong.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, BadAddress> {
        let (host, port) = if text.parse::<Ipv6Addr>().is_ok() {
            (text, None)
        } else if let Some(bracketed) = text.strip_prefix('[') {
            let (host, rest) = bracketed
                .split_once(']')
                .ok_or_else(|| BadAddress::Host(text.to_owned()))?;
            host.parse::<Ipv6Addr>()
                .map_err(|_| BadAddress::Host(host.to_owned()))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(BadAddress::Host(text.to_owned())),
            }
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        if host.is_empty() {
            return Err(BadAddress::NoHost(text.to_owned()));
        }
        let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:%".contains(&byte);
        if host.len() > MAX_HOST_LEN || !host.bytes().all(is_host_byte) {
            return Err(BadAddress::Host(host.to_owned()));
        }
        let port = match port {
            None => default_port,
            Some(port) => port
                .parse()
                .ok()
                .filter(|&port| port != 0)
                .ok_or_else(|| BadAddress::Port(port.to_owned()))?,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// Host name or address, IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for GatewayAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        Self::parse(text, DEFAULT_PORT)
    }
}

impl From<SocketAddr> for GatewayAddress {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn address_accepts_common_spellings() {
        for (text, shown) in [
            ("127.0.0.1", "127.0.0.1:7000"),
            ("sheep-1.example", "sheep-1.example:7000"),
            ("localhost:7001", "localhost:7001"),
            ("::1", "[::1]:7000"),
            ("[::1]", "[::1]:7000"),
            ("[2001:db8::1]:70", "[2001:db8::1]:70"),
        ] {
            assert_eq!(text.parse::<GatewayAddress>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn address_error_names_the_problem() {
        for (text, error) in [
            ("", BadAddress::NoHost(String::new())),
            (":7000", BadAddress::NoHost(":7000".into())),
            ("h:", BadAddress::Port(String::new())),
            ("h:0", BadAddress::Port("0".into())),
            ("h:65536", BadAddress::Port("65536".into())),
            ("a b", BadAddress::Host("a b".into())),
            ("[::1]x", BadAddress::Host("[::1]x".into())),
            ("[localhost]", BadAddress::Host("localhost".into())),
        ] {
            assert_eq!(text.parse::<GatewayAddress>(), Err(error));
        }
    }

    proptest! {
        #[test]
        fn address_parse_and_display_round_trip(text: String) {
            if let Ok(address) = text.parse::<GatewayAddress>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
