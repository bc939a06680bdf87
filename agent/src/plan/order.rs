pub(super) fn lay_out(counts: &[u32]) -> Vec<u32> {
    let total: i64 = counts.iter().map(|c| i64::from(*c)).sum();
    let mut credit = vec![0i64; counts.len()];
    (0..total)
        .map(|_| {
            for (c, w) in credit.iter_mut().zip(counts) {
                *c += i64::from(*w);
            }
            let best = (0..counts.len()).max_by_key(|i| (credit[*i], std::cmp::Reverse(*i))).unwrap_or(0);
            credit[best] -= total;
            best as u32
        })
        .collect()
}
