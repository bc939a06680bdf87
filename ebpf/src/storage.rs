//! The tables of [`sluice_common::registry`] as statics, the record in each socket, and what the agent says before it
//! loads the programs.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    btf_maps::SkStorage,
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use sluice_common::{
    records::{ConnectionRecord, KernelMember, MEMBERS},
    registry::{self, Sizes},
};

// In the object of the observed programs the tables that an agent owns are statics like any other: the four programs use
// none of them, so that the linker drops them, and the verifier would refuse a program that did.
macro_rules! declare {
    (@Pinned $kind:ident $($row:tt)*) => { declare!(@$kind [] $($row)*); };
    (@Own $kind:ident $($row:tt)*) => { declare!(@$kind [not(feature = "observe")] $($row)*); };
    (@Observed $kind:ident $($row:tt)*) => {
        #[cfg(feature = "observe")]
        declare!(@$kind [] $($row)*);
    };
    (@Array $when:tt $name:ident, $key:ty, $value:ty) => {
        declare!(@static $when $name, Array<$value>, with_max_entries);
    };
    (@PerCpuArray $when:tt $name:ident, $key:ty, $value:ty) => {
        declare!(@static $when $name, PerCpuArray<$value>, with_max_entries);
    };
    (@Hash $when:tt $name:ident, $key:ty, $value:ty) => {
        declare!(@static $when $name, HashMap<$key, $value>, with_max_entries);
    };
    (@LruHash $when:tt $name:ident, $key:ty, $value:ty) => {
        declare!(@static $when $name, LruHashMap<$key, $value>, with_max_entries);
    };
    (@Ring $when:tt $name:ident, $key:ty, $value:ty) => { declare!(@static $when $name, RingBuf, with_byte_size); };
    (@SocketStorage [] $name:ident, $key:ty, $value:ty) => {
        #[btf_map]
        pub static $name: SkStorage<$value> = SkStorage::new();
    };
    (@static [$($when:tt)*] $name:ident, $table:ty, $make:ident) => {
        #[cfg_attr(all($($when)*), map)]
        pub static $name: $table =
            <$table>::$make(registry::$name.spec.entries.of(&Sizes::SMALL), registry::$name.spec.kind.flags());
    };
    ($($(#[$doc:meta])* $keep:ident $name:ident: $kind:ident<$key:ty => $value:ty>[$($entries:tt)*];)*) => {
        $(declare!(@$keep $kind $name, $key, $value);)*
    };
}
sluice_common::for_each_table!(declare);

/// Sockets with this SO_MARK pass untouched; 0 is no mark. Set by the agent before loading.
#[unsafe(no_mangle)]
static MARK: u32 = 0;
/// Number of buckets of FRONTENDS less one. Set by the agent before loading.
#[unsafe(no_mangle)]
static FRONTENDS_MASK: u32 = registry::FRONTENDS.spec.entries.of(&Sizes::SMALL) - 1;
/// Offsets of [`KernelMember`]s in this kernel. Set by the agent before loading.
#[unsafe(no_mangle)]
static OFFSETS: [u32; MEMBERS] = [0; MEMBERS];

/// Whether the kernel has `bpf_sock_destroy`. Set by the agent before loading.
#[unsafe(no_mangle)]
static CAN_DESTROY: u32 = 0;
/// Jiffies a second. Set by the agent before loading.
#[unsafe(no_mangle)]
static HZ: u32 = 250;

#[inline(always)]
pub fn bypass_mark() -> u32 {
    // SAFETY: a static of this object; volatile, because the agent changes it after compilation.
    unsafe { ptr::read_volatile(&raw const MARK) }
}

#[inline(always)]
pub fn frontends_mask() -> u32 {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const FRONTENDS_MASK) }
}

#[inline(always)]
pub fn can_destroy() -> bool {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const CAN_DESTROY) != 0 }
}

#[inline(always)]
pub fn hz() -> u32 {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const HZ) }
}

#[inline(always)]
pub fn offset(member: KernelMember) -> usize {
    // SAFETY: as above; `member` is less than MEMBERS.
    unsafe { ptr::read_volatile((&raw const OFFSETS).cast::<u32>().add(member as usize)) as usize }
}

#[inline(always)]
fn connections() -> *mut c_void {
    (&raw const CONNECTIONS).cast_mut().cast()
}

/// The socket's record, or null.
#[inline(always)]
pub fn connection<S>(socket: *mut S) -> *mut ConnectionRecord {
    // SAFETY: `socket` comes from a context, and the helper takes null.
    unsafe { bpf_sk_storage_get(connections(), socket.cast(), ptr::null_mut(), 0).cast() }
}

/// The socket's record, made from `initial` when there is none; null when memory is short.
#[inline(always)]
pub fn connection_or<S>(socket: *mut S, initial: &mut ConnectionRecord) -> *mut ConnectionRecord {
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as above; the helper copies `initial`.
    unsafe { bpf_sk_storage_get(connections(), socket.cast(), ptr::from_mut(initial).cast(), flags).cast() }
}

#[inline(always)]
pub fn forget<S>(socket: *mut S) {
    // SAFETY: as above.
    unsafe { bpf_sk_storage_delete(connections(), socket.cast()) };
}
