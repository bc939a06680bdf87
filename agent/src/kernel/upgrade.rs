//! From the tables of the former version to those of this one, in place.
//!
//! Between the versions 2 and 3 one table got another name (WATCHES is STREAKS now) and one more entries (VERDICTS). All
//! others are taken over as they are, and with them every record of a live connection. An agent that is killed at any step
//! leaves what can go on, and what an agent of one version can take over:
//!
//! 1. The tables are opened where they are, and the new VERDICTS is made beside the former one. An agent with another store
//!    than theirs, or with an older copy of it, refuses them; the verifier checks all programs. Whatever can be refused is
//!    refused here, where the former agent still can come back: it does not look at the one more pin, and the next upgrade
//!    makes it anew. What fails later, on a full disk or without memory, is tried again by an agent of this version.
//! 2. The counts of verdicts are copied. What the former programs count from here until they are replaced is in no metric:
//!    some milliseconds' worth.
//! 3. The version is raised. From here on a former agent refuses, and says so; an agent of this version goes on below. This
//!    comes before the first table that the former agent would take for its own and misunderstand.
//! 4. The pin of VERDICTS is replaced by the new one in one step, then that of WATCHES is renamed. The programs hold their
//!    tables by themselves, so that none of them notices.
//! 5. The programs under the pinned links are replaced, each in one step, as at every start.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use sluice_common::{
    registry::{self, Spec},
    verdict::{Program, Verdict, index},
};

use super::{
    memory::MappedTables,
    pins::{Directory, pinned},
    sys::Map,
};

/// The former name of STREAKS.
const STREAKS: &str = "WATCHES";
/// Where the new VERDICTS is pinned until it takes the former one's place.
const VERDICTS: &str = "VERDICTS_new";
/// The former VERDICTS had so many verdicts for each program, and so many entries.
const EACH: u32 = 16;
const ENTRIES: u32 = 256;

/// What of the former version there is.
pub struct Upgrade {
    directory: Directory,
    has_streaks: bool,
    /// The former table, if it is the one that is pinned.
    verdicts: Option<Map>,
}

impl Upgrade {
    /// Looks what there is. What an upgrade that was not finished has left counts as well.
    ///
    /// # Errors
    /// When a pin cannot be opened or removed.
    pub fn find(directory: &Directory) -> Result<Self> {
        let has_streaks = directory.map(STREAKS).exists();
        let verdicts = match pinned(&directory.map(registry::VERDICTS.spec.name))? {
            Some(map) if map.info().context("asking for the size of VERDICTS")?.max_entries == ENTRIES => Some(map),
            Some(_) | None => None,
        };
        let unfinished = directory.map(VERDICTS);
        if unfinished.exists() {
            fs::remove_file(&unfinished).with_context(|| format!("removing {}", unfinished.display()))?;
        }
        Ok(Self { directory: directory.clone(), has_streaks, verdicts })
    }

    /// Where a table is pinned, or comes to be, until [`Upgrade::finish`].
    pub fn pin(&self, table: &Spec) -> PathBuf {
        let name = if self.has_streaks && *table == registry::STREAKS.spec {
            STREAKS
        } else if self.verdicts.is_some() && *table == registry::VERDICTS.spec {
            VERDICTS
        } else {
            table.name
        };
        self.directory.map(name)
    }

    /// The steps 2 to 4, once every program is loaded.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn finish(self, tables: &MappedTables) -> Result<()> {
        if let Some(former) = &self.verdicts {
            tables.carry_verdicts(former, pairs()).context("copying the counts of verdicts")?;
        }
        tables.stamp_version();
        if self.verdicts.is_some() {
            self.rename(VERDICTS, &registry::VERDICTS.spec)?;
        }
        if self.has_streaks {
            self.rename(STREAKS, &registry::STREAKS.spec)?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, table: &Spec) -> Result<()> {
        let (from, to) = (self.directory.map(from), self.directory.map(table.name));
        fs::rename(&from, &to).with_context(|| format!("moving the pin {} to {}", from.display(), to.display()))
    }
}

/// The former index of each count with its index now.
fn pairs() -> impl Iterator<Item = (u32, u32)> {
    let former = |index: u32| index < EACH;
    Program::ALL.iter().filter(move |program| former(**program as u32)).flat_map(move |program| {
        let verdicts = Verdict::ALL.iter().filter(move |verdict| former(**verdict as u32));
        verdicts.map(|verdict| (*program as u32 * EACH + *verdict as u32, index(*program, *verdict)))
    })
}
