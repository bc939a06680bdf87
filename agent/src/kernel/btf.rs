//! Where members of kernel structures lie in this kernel, from its BTF.
//!
//! Format: Documentation/bpf/btf.rst of the kernel. Only what a walk to a member by its path needs.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use sluice_common::records::{KernelMember, MEMBERS, NO_MEMBER};

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Structure and path of each [`KernelMember`], in the order of their numbers.
const PATHS: [(KernelMember, &str, &[&str]); MEMBERS] = [
    (KernelMember::SkErr, "sock", &["sk_err"]),
    (KernelMember::Family, "sock_common", &["skc_family"]),
    (KernelMember::State, "sock_common", &["skc_state"]),
    (KernelMember::LocalPort, "sock_common", &["skc_num"]),
    (KernelMember::RemotePort, "sock_common", &["skc_dport"]),
    (KernelMember::LocalV4, "sock_common", &["skc_rcv_saddr"]),
    (KernelMember::RemoteV4, "sock_common", &["skc_daddr"]),
    (KernelMember::LocalV6, "sock_common", &["skc_v6_rcv_saddr"]),
    (KernelMember::RemoteV6, "sock_common", &["skc_v6_daddr"]),
    (KernelMember::Cookie, "sock_common", &["skc_cookie"]),
    (KernelMember::Net, "sock_common", &["skc_net", "net"]),
    (KernelMember::NetCookie, "net", &["net_cookie"]),
    (KernelMember::NetInode, "net", &["ns", "inum"]),
    (KernelMember::LastSent, "tcp_sock", &["lsndtime"]),
    (KernelMember::LastReceived, "inet_connection_sock", &["icsk_ack", "lrcvtime"]),
    (KernelMember::WriteSeq, "tcp_sock", &["write_seq"]),
    (KernelMember::SndUna, "tcp_sock", &["snd_una"]),
    (KernelMember::RcvNxt, "tcp_sock", &["rcv_nxt"]),
    (KernelMember::CopiedSeq, "tcp_sock", &["copied_seq"]),
    (KernelMember::BytesSent, "tcp_sock", &["bytes_sent"]),
    (KernelMember::BytesReceived, "tcp_sock", &["bytes_received"]),
    (KernelMember::SndWl1, "tcp_sock", &["snd_wl1"]),
    (KernelMember::Flags, "sock_common", &["skc_flags"]),
    (KernelMember::KeepaliveTime, "tcp_sock", &["keepalive_time"]),
    (KernelMember::SegmentsSent, "tcp_sock", &["data_segs_out"]),
    (KernelMember::Multipath, "tcp_sock", &["is_mptcp"]),
    (KernelMember::Delivered, "tcp_sock", &["delivered_mstamp"]),
    (KernelMember::PingPong, "inet_connection_sock", &["icsk_ack", "pingpong"]),
    (KernelMember::PeerTimestamp, "tcp_sock", &["rx_opt", "ts_recent"]),
    (KernelMember::TimestampOffset, "tcp_sock", &["tsoffset"]),
    (KernelMember::SentAt, "tcp_sock", &["tcp_wstamp_ns"]),
    (KernelMember::SndNxt, "tcp_sock", &["snd_nxt"]),
    (KernelMember::SegmentControl, "sk_buff", &["cb"]),
    (KernelMember::SegmentStart, "tcp_skb_cb", &["seq"]),
    (KernelMember::SegmentEnd, "tcp_skb_cb", &["end_seq"]),
    (KernelMember::SegmentAck, "tcp_skb_cb", &["ack_seq"]),
    (KernelMember::SegmentFlags, "tcp_skb_cb", &["tcp_flags"]),
];

/// What the programs can do without.
const MAY_LACK: [KernelMember; 3] = [KernelMember::Multipath, KernelMember::Delivered, KernelMember::PingPong];

/// What turn time is measured by.
pub const TURN_TIME: [KernelMember; 7] = [
    KernelMember::SentAt,
    KernelMember::SndNxt,
    KernelMember::SegmentControl,
    KernelMember::SegmentStart,
    KernelMember::SegmentEnd,
    KernelMember::SegmentAck,
    KernelMember::SegmentFlags,
];

/// Byte offset of every [`KernelMember`], indexed by it.
///
/// # Errors
/// When this kernel has no BTF or lacks a member.
pub fn offsets() -> Result<[u32; MEMBERS]> {
    let data = fs::read(Path::new(VMLINUX))
        .with_context(|| format!("reading {VMLINUX}: this kernel must be built with CONFIG_DEBUG_INFO_BTF"))?;
    let types = Types::parse(&data)?;
    let mut offsets = [0; MEMBERS];
    for (member, structure, path) in PATHS {
        let is_optional = MAY_LACK.contains(&member) || TURN_TIME.contains(&member);
        let found = types.offset(structure, path).or(is_optional.then_some(NO_MEMBER));
        offsets[member as usize] =
            found.with_context(|| format!("this kernel's struct {structure} has no {}", path.join(".")))?;
    }
    Ok(offsets)
}

/// Looks for every member in any bytes.
#[cfg(any(test, feature = "fuzz"))]
pub fn fuzz(data: &[u8]) {
    if let Ok(types) = Types::parse(data) {
        PATHS.iter().for_each(|(_, structure, path)| {
            types.offset(structure, path);
        });
    }
}

/// Structures and unions, with what leads through to them.
struct Types<'a> {
    strings: &'a [u8],
    /// By type id - 1.
    types: Vec<Type>,
    structs: HashMap<&'a str, u32>,
}

#[derive(Clone)]
enum Type {
    /// Members: name offset, type id, byte offset.
    Compound(Vec<(u32, u32, u32)>),
    /// typedef, const, volatile and the like.
    Alias(u32),
    Other,
}

impl<'a> Types<'a> {
    fn parse(data: &'a [u8]) -> Result<Self> {
        ensure!(data.len() >= 24 && data[..2] == 0xeb9f_u16.to_ne_bytes(), "{VMLINUX} is not BTF");
        let header = word(data, 4)? as usize;
        let (type_start, type_length) = (header + word(data, 8)? as usize, word(data, 12)? as usize);
        let (string_start, string_length) = (header + word(data, 16)? as usize, word(data, 20)? as usize);
        let strings = data.get(string_start..string_start + string_length).context("BTF ends early")?;
        let section = data.get(type_start..type_start + type_length).context("BTF ends early")?;
        let mut parsed = Self { strings, types: Vec::new(), structs: HashMap::new() };
        let mut at = 0;
        while at < section.len() {
            at = parsed.parse_type(section, at)?;
        }
        Ok(parsed)
    }

    /// Reads the type at `at`; returns where the next one begins.
    fn parse_type(&mut self, section: &'a [u8], at: usize) -> Result<usize> {
        let (name, info, size_or_type) = (word(section, at)?, word(section, at + 4)?, word(section, at + 8)?);
        let (count, kind, kind_flag) = (info as usize & 0xffff, info >> 24 & 0x1f, info >> 31 == 1);
        let body = at + 12;
        let (parsed, length) = match kind {
            // STRUCT, UNION
            4 | 5 => {
                let mut members = Vec::with_capacity(count);
                for i in 0..count {
                    let member = body + i * 12;
                    let place = word(section, member + 8)?;
                    let (width, bits) = if kind_flag { (place >> 24, place & 0x00ff_ffff) } else { (0, place) };
                    // A bit field shares its bytes: as good as not there.
                    if width == 0 {
                        members.push((word(section, member)?, word(section, member + 4)?, bits / 8));
                    }
                }
                if kind == 4 && name != 0 {
                    let id = self.types.len() as u32 + 1;
                    self.structs.entry(string(self.strings, name)).or_insert(id);
                }
                (Type::Compound(members), count * 12)
            }
            // TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG
            8..=11 | 18 => (Type::Alias(size_or_type), 0),
            // INT, VAR, DECL_TAG
            1 | 14 | 17 => (Type::Other, 4),
            // ARRAY
            3 => (Type::Other, 12),
            // ENUM, FUNC_PROTO
            6 | 13 => (Type::Other, count * 8),
            // DATASEC, ENUM64
            15 | 19 => (Type::Other, count * 12),
            // PTR, FWD, FUNC, FLOAT
            2 | 7 | 12 | 16 => (Type::Other, 0),
            other => bail!("{VMLINUX} has a kind of type ({other}) that this agent does not know"),
        };
        self.types.push(parsed);
        Ok(body + length)
    }

    fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let mut id = *self.structs.get(structure)?;
        let mut offset = 0;
        for name in path {
            let (member_type, member_offset) = self.member(id, name)?;
            offset = member_offset.checked_add(offset)?;
            id = member_type;
        }
        Some(offset)
    }

    /// Type and offset of a member, through anonymous structures and unions. Each is looked into once: a kernel's types
    /// contain no circle, and bytes that are no kernel's cannot make one of this.
    fn member(&self, id: u32, name: &str) -> Option<(u32, u32)> {
        let (mut seen, mut left) = (HashSet::new(), vec![(id, 0_u32)]);
        while let Some((id, offset)) = left.pop() {
            if !seen.insert(id) {
                continue;
            }
            match (id as usize).checked_sub(1).and_then(|index| self.types.get(index)) {
                Some(Type::Alias(of)) => left.push((*of, offset)),
                Some(Type::Compound(members)) => {
                    for &(label, member, inner) in members {
                        let at = offset.checked_add(inner)?;
                        if label == 0 {
                            left.push((member, at));
                        } else if string(self.strings, label) == name {
                            return Some((member, at));
                        }
                    }
                }
                Some(Type::Other) | None => {}
            }
        }
        None
    }
}

fn string(strings: &[u8], offset: u32) -> &str {
    let rest = strings.get(offset as usize..).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..end]).unwrap_or_default()
}

fn word(data: &[u8], at: usize) -> Result<u32> {
    let bytes = data.get(at..at + 4).context("BTF ends early")?;
    Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_every_member() {
        let offsets = offsets().unwrap();
        // The first members of sock_common are older than BTF.
        assert_eq!(offsets[KernelMember::RemoteV4 as usize], 0);
        assert_eq!(offsets[KernelMember::LocalV4 as usize], 4);
        assert_eq!(offsets[KernelMember::RemotePort as usize], 12);
        assert_eq!(offsets[KernelMember::LocalPort as usize], 14);
        assert!(offsets[KernelMember::LastSent as usize] > 1000);
    }

    #[test]
    fn members_are_found_in_what_has_no_name() {
        let [data] = crate::fuzz::seeds("btf").try_into().unwrap();
        let types = Types::parse(&data).unwrap();
        assert_eq!(
            (types.offset("tcp_sock", &["write_seq"]), types.offset("tcp_sock", &["snd_una"])),
            (Some(0), Some(4))
        );
        assert_eq!(types.offset("tcp_sock", &["snd_una", "write_seq"]), None);
    }

    #[test]
    fn what_is_not_btf_is_refused() {
        for data in [&b""[..], b"not btf at all, not at all", &[0x9f, 0xeb, 1, 0, 24, 0, 0, 0]] {
            assert!(Types::parse(data).is_err());
        }
    }
}
