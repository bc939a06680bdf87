//! The address in a socket call, in both families.
//!
//! Context fields are read and written word by word and volatile: the verifier rejects the wider accesses into which
//! the compiler would otherwise join them.

use core::{marker::PhantomData, ptr};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie},
    programs::SockAddrContext,
};
use sluice_common::{
    pick::ClientIdentity,
    tables::{Endpoint, MAPPED, is_mapped},
    verdict::Program,
};

use crate::{lookup::Requester, storage::bypass_mark};

const AF_INET: u32 = 2;
/// 127.0.0.1 in network byte order.
const LOOPBACK: u32 = 0x7f00_0001_u32.to_be();

macro_rules! field {
    ($call:expr, $name:ident) => {
        // SAFETY: the context lives as long as the program runs.
        unsafe { ptr::read_volatile(&raw const (*$call.context()).$name) }
    };
}

/// How a family keeps its address in the context.
pub trait Family {
    fn read(context: *mut bpf_sock_addr) -> [u32; 4];
    fn write(context: *mut bpf_sock_addr, address: &[u32; 4]);
    /// Whether a socket of this family can speak with `address`.
    fn reaches(address: &[u32; 4]) -> bool;
    fn is_wildcard(address: &[u32; 4]) -> bool;
    /// Where the kernel sends what is addressed to this wildcard: the loopback, or the address that an IPv4 socket is
    /// bound to (`ip_route_output_key`).
    fn meant_by_wildcard(wildcard: &[u32; 4], socket: *const bpf_sock) -> [u32; 4];
}

pub struct V4;
pub struct V6;

impl Family for V4 {
    #[inline(always)]
    fn read(context: *mut bpf_sock_addr) -> [u32; 4] {
        // SAFETY: the context lives as long as the program runs.
        [0, 0, MAPPED, unsafe { ptr::read_volatile(&raw const (*context).user_ip4) }]
    }
    #[inline(always)]
    fn write(context: *mut bpf_sock_addr, address: &[u32; 4]) {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(&raw mut (*context).user_ip4, address[3]) }
    }
    #[inline(always)]
    fn reaches(address: &[u32; 4]) -> bool {
        is_mapped(address)
    }
    #[inline(always)]
    fn is_wildcard(address: &[u32; 4]) -> bool {
        address[3] == 0
    }
    #[inline(always)]
    fn meant_by_wildcard(_: &[u32; 4], socket: *const bpf_sock) -> [u32; 4] {
        // SAFETY: the socket of a call is never null.
        let bound = unsafe { ptr::read_volatile(&raw const (*socket).src_ip4) };
        [0, 0, MAPPED, if bound == 0 { LOOPBACK } else { bound }]
    }
}

impl Family for V6 {
    #[inline(always)]
    fn read(context: *mut bpf_sock_addr) -> [u32; 4] {
        // SAFETY: the context lives as long as the program runs.
        unsafe {
            let words = &raw const (*context).user_ip6;
            [
                ptr::read_volatile(&raw const (*words)[0]),
                ptr::read_volatile(&raw const (*words)[1]),
                ptr::read_volatile(&raw const (*words)[2]),
                ptr::read_volatile(&raw const (*words)[3]),
            ]
        }
    }
    #[inline(always)]
    fn write(context: *mut bpf_sock_addr, address: &[u32; 4]) {
        // SAFETY: as above.
        unsafe {
            let words = &raw mut (*context).user_ip6;
            ptr::write_volatile(&raw mut (*words)[0], address[0]);
            ptr::write_volatile(&raw mut (*words)[1], address[1]);
            ptr::write_volatile(&raw mut (*words)[2], address[2]);
            ptr::write_volatile(&raw mut (*words)[3], address[3]);
        }
    }
    #[inline(always)]
    fn reaches(_: &[u32; 4]) -> bool {
        true
    }
    #[inline(always)]
    fn is_wildcard(address: &[u32; 4]) -> bool {
        address[3] == 0 && address[0] | address[1] == 0 && (address[2] == 0 || address[2] == MAPPED)
    }
    #[inline(always)]
    fn meant_by_wildcard(wildcard: &[u32; 4], socket: *const bpf_sock) -> [u32; 4] {
        // SAFETY: the socket of a call is never null.
        let bound = unsafe {
            let words = &raw const (*socket).src_ip6;
            [
                ptr::read_volatile(&raw const (*words)[0]),
                ptr::read_volatile(&raw const (*words)[1]),
                ptr::read_volatile(&raw const (*words)[2]),
                ptr::read_volatile(&raw const (*words)[3]),
            ]
        };
        match (wildcard[2] == MAPPED, is_mapped(&bound)) {
            (true, true) if bound[3] != 0 => bound,
            (true, _) | (false, true) => [0, 0, MAPPED, LOOPBACK],
            (false, false) => [0, 0, 0, 1_u32.to_be()],
        }
    }
}

/// One call of an application on a socket.
pub struct Call<F> {
    context: SockAddrContext,
    program: Program,
    family: PhantomData<F>,
}

impl<F: Family> Call<F> {
    #[inline(always)]
    pub fn new(context: SockAddrContext, program: Program) -> Self {
        Self { context, program, family: PhantomData }
    }

    #[inline(always)]
    pub fn context(&self) -> *mut bpf_sock_addr {
        self.context.sock_addr
    }

    #[inline(always)]
    pub fn socket(&self) -> *mut bpf_sock {
        // SAFETY: the context lives as long as the program runs.
        unsafe { (*self.context()).__bindgen_anon_1.sk }
    }

    #[inline(always)]
    pub fn program(&self) -> Program {
        self.program
    }

    /// The destination of a call, or the source of what was received.
    #[inline(always)]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::v6(F::read(self.context()), field!(self, user_port) as u16, field!(self, protocol) as u16)
    }

    /// The destination under which a frontend is looked up: a wildcard stands for the address that the kernel takes it
    /// for.
    #[inline(always)]
    pub fn destination(&self) -> Endpoint {
        let mut endpoint = self.endpoint();
        if F::is_wildcard(&endpoint.address) {
            endpoint.address = F::meant_by_wildcard(&endpoint.address, self.socket());
        }
        endpoint
    }

    #[inline(always)]
    pub fn redirect(&self, address: &[u32; 4], port: u16) {
        F::write(self.context(), address);
        // SAFETY: the context lives as long as the program runs.
        unsafe { ptr::write_volatile(&raw mut (*self.context()).user_port, u32::from(port)) }
    }

    /// Whether the socket carries the mark that passes untouched.
    #[inline(always)]
    pub fn is_marked(&self) -> bool {
        let mark = bypass_mark();
        // SAFETY: every socket call has its socket.
        mark != 0 && unsafe { (*self.socket()).mark } == mark
    }
}

impl<F: Family> Requester for Call<F> {
    #[inline(always)]
    fn reaches(&self, address: &[u32; 4]) -> bool {
        F::reaches(address)
    }

    #[inline(always)]
    fn client(&self) -> ClientIdentity {
        let socket = self.socket();
        // SAFETY: helpers on the context; the socket of a call is never null.
        unsafe {
            let v4 = ptr::read_volatile(&raw const (*socket).src_ip4);
            let source = if ptr::read_volatile(&raw const (*socket).family) == AF_INET {
                if v4 == 0 { [0; 4] } else { [0, 0, MAPPED, v4] }
            } else {
                let words = &raw const (*socket).src_ip6;
                [
                    ptr::read_volatile(&raw const (*words)[0]),
                    ptr::read_volatile(&raw const (*words)[1]),
                    ptr::read_volatile(&raw const (*words)[2]),
                    ptr::read_volatile(&raw const (*words)[3]),
                ]
            };
            ClientIdentity {
                netns: bpf_get_netns_cookie(self.context().cast()),
                cgroup: bpf_get_current_cgroup_id(),
                source,
            }
        }
    }
}
