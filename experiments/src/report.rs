//! Runs and sweeps as one page: what was learned, by what, how sure that is, what the policies do where, and how all
//! of it is made again.
//!
//! [`collect`] finds runs and groups them by configuration; [`replay`] plays the evaluation episodes again, since
//! summaries hold means only; [`figures`] makes estimates with intervals of them, [`behaviour`] shares of what was
//! chosen where, [`gap`] what is lost against an oracle; [`plots`] and [`page`] are what people see.

pub mod behaviour;
pub mod collect;
pub mod figures;
pub mod gap;
mod page;
mod plots;
pub mod replay;

use std::path::PathBuf;

use crate::LabError;
use collect::Group;
use figures::GroupFigures;
use gap::Gap;

/// What to put on the page.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Episodes per policy against the oracle; 0 for none.
    pub oracle_episodes: u64,
}

/// What is happening, for whoever watches.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// So many episodes will be played.
    Episodes(usize),
    /// One of them has ended.
    Played,
    /// The oracle is at work.
    Oracle,
}

/// A configuration with all that is known of it.
#[derive(Debug)]
pub(crate) struct Section {
    group: Group,
    figures: Option<GroupFigures>,
    behaviour: Option<behaviour::Behaviour>,
    gap: Option<Result<Gap, String>>,
}

/// The page of all runs in and below the directories. `watch` is told of the progress and says whether to go on.
///
/// # Errors
/// `NothingToReport`; `Interrupted`; whatever stands in the way of playing the policies.
pub fn report(
    dirs: &[PathBuf],
    options: &Options,
    watch: &mut dyn FnMut(Progress) -> bool,
) -> Result<String, LabError> {
    let groups = collect::groups(dirs)?;
    let episodes = groups.iter().map(replay::episode_count).sum();
    go_on(watch(Progress::Episodes(episodes)))?;
    let mut sections = vec![];
    for group in groups {
        let replayed = replay::replay(&group, &mut || watch(Progress::Played))?;
        let (figures, behaviour) = match &replayed {
            Some(replayed) => (
                GroupFigures::of(&group, replayed),
                Some(replayed.behaviour.summary()),
            ),
            None => (None, None),
        };
        let gap = match options.oracle_episodes {
            0 => None,
            episodes => gap::gap(&group, episodes, &mut || watch(Progress::Oracle))?,
        };
        sections.push(Section {
            group,
            figures,
            behaviour,
            gap,
        });
    }
    // Best first; what was not compared comes last.
    let score = |section: &Section| {
        section
            .figures
            .as_ref()
            .map_or(f64::NEG_INFINITY, |own| own.median)
    };
    sections.sort_by(|a, b| score(b).total_cmp(&score(a)));
    Ok(page::page(dirs, &sections))
}

fn go_on(goes_on: bool) -> Result<(), LabError> {
    if goes_on {
        Ok(())
    } else {
        Err(LabError::Interrupted)
    }
}
