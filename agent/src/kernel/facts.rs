//! What the programs are told about this kernel before they are loaded.

use std::borrow::Cow;

use anyhow::Result;
use aya::{Btf, EbpfLoader};
use aya_obj::btf::BtfKind;
use sluice_common::{
    drain::DESTROY,
    records::{MEMBERS, NO_MEMBER},
};

use super::btf;
use crate::host::clock;

/// The compiled programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice-ebpf"));
/// Those that choose a backend once more, observed. They need to know nothing of the kernel.
pub static OBSERVED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice-ebpf-observed"));

pub struct Facts {
    offsets: [u32; MEMBERS],
    hz: u32,
    /// BTF id of `bpf_sock_destroy` (6.5 and later).
    destroy: Option<u32>,
}

impl Facts {
    /// # Errors
    /// When this kernel has no BTF or lacks a member.
    pub fn find(types: &Btf) -> Result<Self> {
        let destroy = types.id_by_type_name_kind("bpf_sock_destroy", BtfKind::Func).ok();
        Ok(Self { offsets: btf::offsets()?, hz: clock::hz(), destroy })
    }

    /// Whether the kernel has the members that turn time is measured by.
    pub fn can_time_turns(&self) -> bool {
        btf::TURN_TIME.iter().all(|member| self.offsets[*member as usize] != NO_MEMBER)
    }

    pub fn can_destroy(&self) -> bool {
        self.destroy.is_some()
    }

    /// The object as this kernel can load it.
    pub fn object(&self) -> Cow<'static, [u8]> {
        match self.destroy {
            Some(function) => Cow::Owned(with_destroy(OBJECT, function)),
            None => Cow::Borrowed(OBJECT),
        }
    }

    pub fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        const YES: &u32 = &1;
        loader.override_global("OFFSETS", self.offsets.as_slice(), true).override_global("HZ", &self.hz, true);
        if self.can_destroy() {
            loader.override_global("CAN_DESTROY", YES, true);
        }
    }
}

/// Turns calls of the helper number [`DESTROY`] into calls of a kernel function: an instruction has its opcode in byte 0,
/// the source register in the upper half of byte 1 (2: BPF_PSEUDO_KFUNC_CALL) and the number in bytes 4 to 7.
fn with_destroy(object: &[u8], function: u32) -> Vec<u8> {
    const CALL: u8 = 0x85;
    let mut call = [CALL, 0, 0, 0, 0, 0, 0, 0];
    call[4..].copy_from_slice(&DESTROY.to_le_bytes());
    let mut patched = object.to_vec();
    for instruction in patched.chunks_exact_mut(8).filter(|instruction| **instruction == call) {
        instruction[1] = 0x20;
        instruction[4..].copy_from_slice(&function.to_le_bytes());
    }
    patched
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sluice_common::registry::{self, Keep, Sizes};

    use super::*;

    type Shape = (u32, u32, u32, u32, u32);

    /// The tables of an object. Sections of constants become tables too, and are none.
    fn tables(object: &[u8]) -> BTreeMap<String, Shape> {
        let object = aya_obj::Object::parse(object).unwrap();
        let tables = object.maps.iter().filter(|(name, _)| !name.starts_with('.'));
        tables
            .map(|(name, map)| {
                let sizes = (map.key_size(), map.value_size(), map.max_entries());
                (name.clone(), (map.map_type(), sizes.0, sizes.1, sizes.2, map.map_flags()))
            })
            .collect()
    }

    fn registered(kept: impl Fn(Keep) -> bool) -> BTreeMap<String, Shape> {
        let tables = registry::ALL.iter().filter(|table| kept(table.keep));
        tables
            .map(|table| {
                let entries = table.entries.of(&Sizes::SMALL);
                (table.name.to_owned(), (table.kind.number(), table.key, table.value, entries, table.kind.flags()))
            })
            .collect()
    }

    #[test]
    fn the_object_has_the_tables_of_the_registry_and_no_others() {
        assert_eq!(tables(OBJECT), registered(|keep| keep != Keep::Observed));
    }

    #[test]
    fn observed_programs_share_what_is_pinned_and_own_the_rest() {
        let mut found = tables(OBSERVED);
        assert!(found.remove("AYA_LOGS").is_some(), "the ring of aya-log: {found:?}");
        assert_eq!(found, registered(|keep| keep != Keep::Own));
    }
}
