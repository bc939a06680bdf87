//! Work on many items by all processors.

use std::{panic::resume_unwind, thread};

/// `work` on each of `items`, in their order. Each thread takes a run of neighbours, of at least `least`.
pub fn map<T: Send, U: Send>(items: Vec<T>, least: usize, work: impl Fn(T) -> U + Sync) -> Vec<U> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.min(items.len() / least.max(1)).max(1);
    if threads == 1 {
        return items.into_iter().map(work).collect();
    }
    let run = items.len().div_ceil(threads);
    let mut items = items.into_iter();
    let work = &work;
    thread::scope(|scope| {
        let runs: Vec<Vec<T>> = (0..threads).map(|_| items.by_ref().take(run).collect()).collect();
        let threads: Vec<_> =
            runs.into_iter().map(|run| scope.spawn(move || run.into_iter().map(work).collect::<Vec<U>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn order_is_kept_whatever_the_number() {
        for count in [0, 1, 2, 3, 7, 100, 1001] {
            let items: Vec<usize> = (0..count).collect();
            let wanted: Vec<usize> = items.iter().map(|item| item * 2).collect();
            assert_eq!(super::map(items, 2, |item| item * 2), wanted);
        }
    }
}
