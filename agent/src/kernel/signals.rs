//! The signals of the programs. What was said before this agent started is not in them: [`super::StreakTable`] has how
//! things stand.
#![allow(unsafe_code)]

use anyhow::Result;
use sluice_common::{registry::SIGNALS, streak::Signal};

use super::{object::Object, ring::Ring};

pub type Signals = Ring<Signal>;

pub(super) fn open(object: &mut Object) -> Result<Signals> {
    // SAFETY: `Signal`s are integers, and all that the programs write there.
    unsafe { Ring::new(object, &SIGNALS.spec) }
}
