use super::table::{Table, apportion};
pub struct Candidate {
    pub identity: u64,
    pub share: u64,
}
pub fn affinity(candidates: &[Candidate]) -> Table {
    let shares: Vec<u64> = candidates.iter().map(|c| c.share).collect();
    let counts = apportion(&shares, 1024);
    let mut slots = Vec::new();
    for (i, n) in counts.iter().enumerate() {
        for _ in 0..*n {
            slots.push(i as u32);
        }
    }
    let _ = candidates.iter().map(|c| c.identity).max();
    Table::new(slots, &shares)
}
