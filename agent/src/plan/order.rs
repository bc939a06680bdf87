//! The order of slots in a spread table: any [`WINDOW`] consecutive slots of the endlessly repeated cycle give each
//! backend its share of them to within one.
//!
//! A cycle of P slots holds backend i in c(i) of them. WINDOW slots are some whole cycles, which are exact, and
//! w = WINDOW mod P more; and the P - w slots beside a window of w are off by as much as it is, so w <= P / 2 may be
//! assumed. The promise is therefore: every w consecutive slots hold backend i h times with |h - w c(i) / P| <= 1.
//!
//! The first order is smooth weighted round robin (as in nginx's upstream module): each slot goes to the backend that is
//! furthest behind its share. That keeps the promise for two backends and for most short cycles, not for most long
//! ones. There, rounds follow. A round walks the cycle once more and lays each slot anew, by the same rule except that
//!
//! - a backend whose window, the w slots that end here, holds as many as it may is passed over, and
//! - one whose window would hold fewer than it must is taken at once.
//!
//! Moving a window by one slot drops one backend and adds one, so at most the one dropped can fall short; and the upper
//! bounds add up to more than w, so somebody may always be taken. Endless rounds would therefore keep the promise. A
//! table is one round repeated, so rounds go on until one agrees with itself across its end. To make them settle, the
//! backend that held a slot in the round before is preferred a little, and more so with each round. Rounds that
//! still run in circles start again with every backend's credit moved.
//!
//! Every cycle up to P = 52 settles, and so did every one of a million random cycles, 99 in 100 within ten rounds. That
//! all cycles do is not proved; one that does not gets the best round seen.

/// Any this many consecutive connections are within one of each backend's share.
pub const WINDOW: usize = 100;

/// Rounds in which the preference for the order before grows, before credits are moved and it starts again at nothing.
const ROUNDS_PER_START: usize = 64;
/// A round adds this part of the cycle to the preference.
const PREFERENCE: i32 = 128;
/// Bounds rounds times slots times backends (and a bit for each slot), which is about 20 ms. Hardly a cycle takes a
/// tenth of that.
const MOST_WORK: usize = 1 << 24;
/// Outweighs any credit: the backend is taken at once, or passed over.
const DECIDED: i32 = 1 << 28;

/// Lays out a cycle that holds backend `i` in `counts[i]` slots. Counts are positive and small
/// (at most [`super::table::MAX_SLOTS`] in all).
pub fn lay_out(counts: &[u32]) -> Vec<u32> {
    let period = counts.iter().sum::<u32>() as usize;
    let slots = smooth(counts, period);
    let rest = if period == 0 { 0 } else { WINDOW % period };
    let window = rest.min(period - rest);
    match worst_window(&slots, counts, window) {
        Some(worst) if worst > period as u32 => even_out(slots, counts, window, worst),
        _ => slots,
    }
}

/// Smooth weighted round robin: credit grows by the count with every slot, and the slot costs its owner a cycle.
fn smooth(counts: &[u32], period: usize) -> Vec<u32> {
    let mut credit = vec![0; counts.len()];
    let next = |_| {
        earn(&mut credit, counts);
        let next = highest(&credit);
        credit[next] -= period as i32;
        next as u32
    };
    (0..period).map(next).collect()
}

/// Rounds until the promise is kept, or else the best round seen.
fn even_out(slots: Vec<u32>, counts: &[u32], window: usize, worst: u32) -> Vec<u32> {
    let period = slots.len();
    let mut best = (worst, slots.clone());
    let mut round = Round::new(slots, counts, window);
    for number in 0..MOST_WORK / (period * (counts.len() + 8)) {
        if number % ROUNDS_PER_START == 0 {
            round.restart(number / ROUNDS_PER_START);
        }
        round.walk((number % ROUNDS_PER_START * period) as i32 / PREFERENCE);
        match worst_window(&round.slots, counts, window) {
            Some(worst) if worst <= period as u32 => return round.slots,
            Some(worst) if worst < best.0 => best = (worst, round.slots.clone()),
            _ => {}
        }
    }
    best.1
}

/// The slots, and for every backend its standing as the walk goes around.
struct Round<'a> {
    counts: &'a [u32],
    slots: Vec<u32>,
    window: usize,
    /// Slots in the window that ends at the present slot.
    held: Vec<i32>,
    /// Credit as in smooth weighted round robin, plus or minus [`DECIDED`] where the window decides.
    credit: Vec<i32>,
}

impl Round<'_> {
    fn new(slots: Vec<u32>, counts: &[u32], window: usize) -> Round<'_> {
        let mut held = vec![0; counts.len()];
        for &slot in &slots[slots.len() - window..] {
            held[slot as usize] += 1;
        }
        Round { counts, slots, window, held, credit: vec![0; counts.len()] }
    }

    /// Gives every backend a new credit: none at the first start, then parts of a cycle in steps of the golden ratio.
    fn restart(&mut self, start: usize) {
        const GOLDEN_RATIO: u32 = 0x9e37_79b9;
        for i in 0..self.credit.len() {
            let step = ((i + 1) * start) as u32;
            let part = u64::from(step.wrapping_mul(GOLDEN_RATIO)) * self.slots.len() as u64;
            self.credit[i] = (part >> 32) as i32 + self.decision(i);
        }
    }

    /// One round. `preference` is in units of credit.
    fn walk(&mut self, preference: i32) {
        let period = self.slots.len();
        for slot in 0..period {
            let before = self.slots[slot] as usize;
            let dropped = self.slots[(slot + period - self.window) % period] as usize;
            self.hold(dropped, -1);
            earn(&mut self.credit, self.counts);
            self.credit[before] += preference;
            let next = highest(&self.credit);
            self.credit[before] -= preference;
            self.credit[next] -= period as i32;
            self.hold(next, 1);
            self.slots[slot] = next as u32;
        }
    }

    /// The window holds this many slots more of a backend.
    fn hold(&mut self, backend: usize, change: i32) {
        self.credit[backend] -= self.decision(backend);
        self.held[backend] += change;
        self.credit[backend] += self.decision(backend);
    }

    /// Whether the window, still one slot short, leaves a choice: full, it must hold `share - 1` to `share + 1`.
    fn decision(&self, backend: usize) -> i32 {
        let share = self.window as i32 * self.counts[backend] as i32;
        let held = self.held[backend] * self.slots.len() as i32;
        let one = self.slots.len() as i32;
        if held < share - one {
            DECIDED
        } else if held > share {
            -DECIDED
        } else {
            0
        }
    }
}

fn earn(credit: &mut [i32], counts: &[u32]) {
    for (credit, &count) in credit.iter_mut().zip(counts) {
        *credit += count as i32;
    }
}

/// The first of the highest.
fn highest(credit: &[i32]) -> usize {
    let highest = credit.iter().copied().fold(i32::MIN, i32::max);
    credit.iter().position(|&credit| credit == highest).unwrap_or(0)
}

/// The largest `|held - window * share|` over all windows of the repeated cycle, times the period (which keeps it whole);
/// `None` when the slots do not add up to the counts.
fn worst_window(slots: &[u32], counts: &[u32], window: usize) -> Option<u32> {
    let period = slots.len() as u32;
    let mut held = vec![0; counts.len()];
    for &slot in slots {
        held[slot as usize] += 1;
    }
    if held != counts {
        return None;
    }
    held.fill(0);
    for &slot in &slots[..window] {
        held[slot as usize] += 1;
    }
    let off = |held: &[u32], i: usize| (held[i] * period).abs_diff(window as u32 * counts[i]);
    let mut worst = (0..counts.len()).map(|i| off(&held, i)).max().unwrap_or(0);
    let entering = slots[window..].iter().chain(&slots[..window]);
    for (&leaves, &enters) in slots.iter().zip(entering) {
        held[enters as usize] += 1;
        held[leaves as usize] -= 1;
        worst = worst.max(off(&held, leaves as usize));
        worst = worst.max(off(&held, enters as usize));
    }
    Some(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The promise, checked the slow way: every window is counted afresh.
    fn keeps_the_promise(counts: &[u32]) -> bool {
        let slots = lay_out(counts);
        let period = slots.len();
        let held = |from: usize, length: usize, backend: u32| {
            (from..from + length).filter(|at| slots[at % period] == backend).count()
        };
        (0..counts.len()).all(|i| {
            let count = counts[i] as usize;
            held(0, period, i as u32) == count
                && (0..period).all(|from| (held(from, WINDOW, i as u32) * period).abs_diff(WINDOW * count) <= period)
        })
    }

    /// Calls `check` with every way to write `rest` as a sum of counts, none larger than `most`.
    fn partitions(rest: u32, most: u32, counts: &mut Vec<u32>, check: &mut dyn FnMut(&[u32])) {
        if rest == 0 {
            check(counts);
        }
        for count in 1..=most.min(rest) {
            counts.push(count);
            partitions(rest - count, count, counts, check);
            counts.pop();
        }
    }

    #[test]
    fn every_cycle_up_to_22_slots_keeps_the_promise() {
        for period in 1..=22 {
            partitions(period, period, &mut Vec::new(), &mut |counts| {
                assert!(keeps_the_promise(counts), "{counts:?}");
            });
        }
    }

    #[test]
    fn cycles_that_smooth_round_robin_lays_out_too_unevenly_keep_the_promise() {
        for counts in [
            &[38, 32, 22, 30, 18, 33, 30, 2][..],
            &[78, 27, 24, 37, 25, 70, 8],
            &[221, 295, 51],
            &[17, 17, 82, 97, 30],
            &[1, 4, 83, 13, 100],
            &[13, 196, 125, 67],
            &[992, 6, 90, 513],
        ] {
            let period = counts.iter().sum::<u32>();
            let worst = |slots: &[u32]| worst_window(slots, counts, WINDOW.min(period as usize - WINDOW));
            assert!(worst(&smooth(counts, period as usize)) > Some(period), "{counts:?}");
            assert!(keeps_the_promise(counts), "{counts:?}");
        }
    }

    #[test]
    fn smooth_round_robin_interleaves() {
        assert_eq!(lay_out(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn nothing_to_lay_out_is_an_empty_cycle() {
        assert!(lay_out(&[]).is_empty());
    }
}
