//! What the kernel changed along with a device's scheduler, as the journal keeps it:
//! `nr_requests:128:256 wbt_lat_usec:2000:0`, each before and after; the latter is empty until it is
//! known.

use std::fmt;

use super::DeviceKnob;

/// One setting that the kernel changed along with the scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SideEffect {
    /// The setting.
    pub(crate) knob: DeviceKnob,
    /// Its value before the scheduler was first changed.
    pub(crate) before: String,
    /// Its value since the last change; `None` when a crash came between.
    pub(crate) after: Option<String>,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SideEffects(pub(crate) Vec<SideEffect>);

impl SideEffects {
    /// As they are journalled. What cannot be understood is left out: it is not put back then.
    pub(crate) fn of(text: Option<&str>) -> Self {
        let effect = |text: &str| {
            let mut parts = text.splitn(3, ':');
            let (knob, before, after) = (parts.next()?, parts.next()?, parts.next()?);
            Some(SideEffect {
                knob: knob.parse().ok()?,
                before: before.to_owned(),
                after: (!after.is_empty()).then(|| after.to_owned()),
            })
        };
        let effects = text.unwrap_or_default().split_whitespace();
        Self(effects.filter_map(effect).collect())
    }

    /// What a setting that stands at `now` had before the scheduler was first changed: what somebody
    /// else has set since is not the kernel's doing, and stays.
    pub(crate) fn before(&self, knob: DeviceKnob, now: &str) -> String {
        let known = self.0.iter().find(|effect| effect.knob == knob);
        let is_kernels = |effect: &&SideEffect| effect.after.as_deref().is_none_or(|a| a == now);
        known
            .filter(is_kernels)
            .map_or_else(|| now.to_owned(), |effect| effect.before.clone())
    }
}

impl fmt::Display for SideEffects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, effect) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            let after = effect.after.as_deref().unwrap_or_default();
            write!(f, "{space}{}:{}:{after}", effect.knob, effect.before)?;
        }
        Ok(())
    }
}
