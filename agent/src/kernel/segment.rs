//! TCP segments without data, made by hand and sent through raw sockets: as one end of a connection would send them to the
//! other.
//!
//! A packet to an address of this namespace goes over its loopback and keeps the route by which it was sent: where it
//! seems to come from is not asked (`rp_filter`).

use std::{
    collections::{HashMap, hash_map::Entry},
    io::Result,
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// A segment; its numbers are those of RFC 9293.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub fin: bool,
    /// As announced: shifted already.
    pub window: u16,
    /// Own time and echo (RFC 7323).
    pub timestamps: Option<(u32, u32)>,
}

/// A segment ready to be sent.
pub struct Packet {
    bytes: Vec<u8>,
    to: SockAddr,
    route: Route,
}

/// Which raw socket sends a packet: whether it is of IPv4, and the address that it is bound to, on which routes may depend.
/// `None`: for packets to this namespace.
type Route = (bool, Option<IpAddr>);

/// Raw sockets of the namespace in which they were opened.
#[derive(Default)]
pub struct RawSockets {
    open: HashMap<Route, Socket>,
}

/// Both ends of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To a socket of this namespace, as its peer.
    Inward,
    /// To the peer, as a socket of this namespace.
    Outward,
}

const PROTOCOL: u8 = 6;
const HOPS: u8 = 64;

impl Segment {
    pub fn packet(&self, direction: Direction) -> Packet {
        let bound = match direction {
            Direction::Inward => None,
            Direction::Outward => Some(self.from.ip()),
        };
        // Raw sockets know no ports.
        let to = SocketAddr::new(self.to.ip(), 0);
        Packet { bytes: self.bytes(), to: to.into(), route: (to.is_ipv4(), bound) }
    }

    /// From the IP header on.
    fn bytes(&self) -> Vec<u8> {
        let tcp = self.tcp();
        let length = tcp.len() as u16;
        let mut packet = Vec::with_capacity(40 + tcp.len());
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                const DO_NOT_FRAGMENT: u8 = 0x40;
                packet.extend([0x45, 0]);
                packet.extend((20 + length).to_be_bytes());
                packet.extend([0, 0, DO_NOT_FRAGMENT, 0, HOPS, PROTOCOL, 0, 0]);
                packet.extend(from.octets());
                packet.extend(to.octets());
                let sum = checksum(&[&packet]);
                packet.splice(10..12, sum.to_be_bytes());
            }
            _ => {
                packet.extend([0x60, 0, 0, 0]);
                packet.extend(length.to_be_bytes());
                packet.extend([PROTOCOL, HOPS]);
                packet.extend(octets(self.from.ip()));
                packet.extend(octets(self.to.ip()));
            }
        }
        packet.extend(tcp);
        packet
    }

    fn tcp(&self) -> Vec<u8> {
        const ACK: u8 = 0x10;
        const FIN: u8 = 1;
        let mut tcp = Vec::with_capacity(32);
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgment.to_be_bytes());
        let words: u8 = if self.timestamps.is_some() { 8 } else { 5 };
        tcp.extend([words << 4, ACK | if self.fin { FIN } else { 0 }]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        if let Some((own, echo)) = self.timestamps {
            // Two of no operation, then kind and length.
            tcp.extend([1, 1, 8, 10]);
            tcp.extend(own.to_be_bytes());
            tcp.extend(echo.to_be_bytes());
        }
        let about = [0, PROTOCOL, 0, tcp.len() as u8];
        let sum = checksum(&[&octets(self.from.ip()), &octets(self.to.ip()), &about, &tcp]);
        tcp.splice(16..18, sum.to_be_bytes());
        tcp
    }
}

impl RawSockets {
    /// Opens what is needed to send to `remote` as `local`, and the other way round. A socket that was bound shows that
    /// `local` is an address of this namespace: what is sent there stays here.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, or when `local` is somebody else's address.
    pub fn prepare(&mut self, local: SocketAddr, remote: SocketAddr) -> Result<()> {
        self.socket((remote.is_ipv4(), Some(local.ip())))?;
        self.socket((local.is_ipv4(), None)).map(drop)
    }

    /// # Errors
    /// When there is no route, or a filter refuses it.
    pub fn send(&mut self, packet: &Packet) -> Result<()> {
        self.socket(packet.route)?.send_to(&packet.bytes, &packet.to).map(drop)
    }

    fn socket(&mut self, route: Route) -> Result<&Socket> {
        match self.open.entry(route) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(place) => {
                let (is_ipv4, bound) = route;
                let domain = if is_ipv4 { Domain::IPV4 } else { Domain::IPV6 };
                let socket = Socket::new(domain, Type::RAW.cloexec(), Some(Protocol::from(libc::IPPROTO_RAW)))?;
                if let Some(address) = bound {
                    socket.bind(&SocketAddr::new(address, 0).into())?;
                }
                Ok(place.insert(socket))
            }
        }
    }
}

/// # Errors
/// When this process may not open raw sockets.
pub fn probe() -> Result<()> {
    Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).map(drop)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071) of parts that have an even number of bytes each.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from_be_bytes([0, 0, word[0], word.get(1).copied().unwrap_or(0)])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fin(from: &str, to: &str) -> Segment {
        Segment {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            sequence: 0x0102_0304,
            acknowledgment: 0xfffe_fdfc,
            fin: true,
            window: 0x1234,
            timestamps: Some((7, 9)),
        }
    }

    #[test]
    fn a_packet_has_what_the_standards_ask_for() {
        let packet = fin("192.0.2.1:80", "198.51.100.2:4660").bytes();
        assert_eq!(packet.len(), 52);
        assert_eq!((packet[0], packet[9], &packet[2..4]), (0x45, 6, &[0, 52][..]));
        assert_eq!((&packet[12..16], &packet[16..20]), (&[192, 0, 2, 1][..], &[198, 51, 100, 2][..]));
        assert_eq!(checksum(&[&packet[..20]]), 0, "a right sum makes the whole sum zero");
        let tcp = &packet[20..];
        assert_eq!(tcp[..12], [0, 80, 0x12, 0x34, 1, 2, 3, 4, 0xff, 0xfe, 0xfd, 0xfc]);
        assert_eq!((tcp[12], tcp[13], &tcp[14..16]), (0x80, 0x11, &[0x12, 0x34][..]));
        assert_eq!(tcp[20..], [1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 9]);
        assert_eq!(checksum(&[&packet[12..20], &[0, 6, 0, 32], tcp]), 0);
        let packet = fin("[2001:db8::1]:80", "[2001:db8::2]:4660").bytes();
        assert_eq!((packet.len(), packet[0], packet[6], &packet[4..6]), (72, 0x60, 6, &[0, 32][..]));
        assert_eq!(checksum(&[&packet[8..40], &[0, 6, 0, 32], &packet[40..]]), 0);
        let plain = Segment { timestamps: None, fin: false, ..fin("192.0.2.1:80", "198.51.100.2:4660") }.bytes();
        assert_eq!((plain.len(), plain[32], plain[33]), (40, 0x50, 0x10));
    }
}
