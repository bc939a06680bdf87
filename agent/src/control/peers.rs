//! Which agents of a fleet look at a backend: rendezvous hashing (Thaler and Ravishankar, 1996).

/// Whether `node` is among the `probers` of `peers` whose hash with the backend is highest. Each backend has
/// min(`probers`, peers) of them; removing a peer moves only what it looked at. Peers are counted once, however often
/// they are named.
pub fn is_prober(node: &str, peers: &[String], probers: usize, service: &str, backend: &str) -> bool {
    if !peers.iter().any(|peer| peer == node) {
        return false;
    }
    // Names decide between equal hashes.
    let rank = |peer: &str| score(peer, service, backend);
    let own = (rank(node), node);
    let mut better: Vec<&str> = peers.iter().map(String::as_str).filter(|peer| (rank(peer), *peer) > own).collect();
    better.sort_unstable();
    better.dedup();
    better.len() < probers
}

/// FNV-1a, 64 bits, with the finish of SplitMix64. Agents of all versions must agree: it never changes.
fn score(peer: &str, service: &str, backend: &str) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    // No name has a slash.
    let bytes = [peer, "/", service, "/", backend].into_iter().flat_map(str::bytes);
    let mut hash = bytes.fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peers(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("node-{number}")).collect()
    }

    fn probers_of(peers: &[String], probers: usize, backend: &str) -> Vec<String> {
        peers.iter().filter(|peer| is_prober(peer, peers, probers, "shop", backend)).cloned().collect()
    }

    proptest! {
        #[test]
        fn each_backend_has_its_number_and_a_peer_that_leaves_moves_only_its_own(
            count in 1_usize..40, probers in 1_usize..6, gone in 0_usize..40, number in 0_u32..1000,
        ) {
            let (all, backend) = (peers(count), format!("b{number}"));
            let before = probers_of(&all, probers, &backend);
            prop_assert_eq!(before.len(), probers.min(count));
            let gone = format!("node-{}", gone % count);
            let rest: Vec<_> = all.into_iter().filter(|peer| *peer != gone).collect();
            let after = probers_of(&rest, probers, &backend);
            prop_assert_eq!(after.len(), probers.min(rest.len()));
            // Whoever looked goes on looking.
            prop_assert!(before.iter().filter(|peer| **peer != gone).all(|peer| after.contains(peer)));
            if !before.contains(&gone) {
                prop_assert_eq!(before, after);
            }
        }
    }

    #[test]
    fn the_shares_are_about_equal() {
        let all = peers(10);
        let mine = (0..10_000).filter(|n| is_prober("node-3", &all, 3, "shop", &format!("b{n}"))).count();
        assert!((2_700..3_300).contains(&mine), "{mine} of 10000, and 3000 is the share");
    }

    #[test]
    fn who_is_no_peer_never_looks_and_a_peer_named_twice_counts_once() {
        let twice = vec!["a".to_owned(), "b".to_owned(), "b".to_owned(), "b".to_owned()];
        assert!(!is_prober("c", &twice, 3, "shop", "b1"));
        for backend in ["b1", "b2", "b3", "b4"] {
            assert!(is_prober("a", &twice, 2, "shop", backend), "there are two");
        }
    }
}
