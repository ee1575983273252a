//! tuned's profile, as far as it sets what blkpilot could set: its plugins `disk`, `sysfs` and
//! `scheduler`.
//!
//! Profiles are merged as tuned merges them (`tuned/profiles/loader.py` and `merger.py`): what a profile
//! includes comes first, and a section of the same name is overlaid, unless it says `replace`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use configparser::ini::Ini;
use glob::Pattern;

use super::processes::Process;
use super::{Claim, DaemonKind, TuningDaemon};
use crate::device::DeviceKnob;

/// The names of the profiles in force.
const ACTIVE: &str = "/etc/tuned/active_profile";
/// Where profiles are, those that hold first; tuned 2.23 has moved them one level down.
const PROFILES: [&str; 4] = [
    "/etc/tuned/profiles",
    "/etc/tuned",
    "/usr/lib/tuned/profiles",
    "/usr/lib/tuned",
];
/// Profiles that are read at most: one that includes itself ends too.
const MOST_PROFILES: usize = 64;

/// Settings of request queues that a section of a profile sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueClaim {
    /// Where and what: `[disk] readahead=>4096`.
    pub source: String,
    /// On which devices.
    pub devices: DevicePattern,
    /// Which settings.
    pub knobs: BTreeSet<DeviceKnob>,
}

/// Kernel names as tuned matches them (`tuned/hardware/device_matcher.py`): shell patterns, with `!` those
/// that are left out; without any but such, all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePattern {
    wanted: Vec<Pattern>,
    left_out: Vec<Pattern>,
}

/// A section of a merged profile.
#[derive(Debug, Clone, Default)]
struct Unit {
    options: BTreeMap<String, String>,
}

type Units = BTreeMap<String, Unit>;

pub(super) fn read(process: &Process, root: &Path) -> TuningDaemon {
    let active = process.read(root, ACTIVE).unwrap_or_default();
    let names: Vec<&str> = active.split_whitespace().collect();
    let mut loader = Loader {
        process,
        root,
        read: BTreeSet::new(),
        missing: vec![],
        units: Units::new(),
    };
    loader.load(names.iter().copied());
    let mut settings = vec![if names.is_empty() {
        "no profile".to_owned()
    } else {
        format!("profile {}", names.join(" "))
    }];
    let missing = loader.missing.iter();
    settings.extend(missing.map(|name| format!("profile {name} cannot be read")));
    TuningDaemon {
        kind: DaemonKind::Tuned,
        pid: process.pid,
        settings,
        claims: loader
            .units
            .iter()
            .flat_map(|(name, unit)| unit.claims(name))
            .collect(),
    }
}

struct Loader<'a> {
    process: &'a Process,
    root: &'a Path,
    /// Files that have been read: a profile in /etc may include that of its own name in /usr.
    read: BTreeSet<String>,
    missing: Vec<String>,
    units: Units,
}

impl Loader<'_> {
    fn load<'n>(&mut self, names: impl Iterator<Item = &'n str>) {
        for name in names.filter(|name| !name.is_empty()) {
            // With a hyphen it need not be there.
            let (bare, is_needed) = match name.strip_prefix('-') {
                Some(bare) => (bare, false),
                None => (name, true),
            };
            match self.text(bare) {
                Some(text) => self.add(&text),
                None if is_needed && !self.read.iter().any(|file| is_of(file, bare)) => {
                    self.missing.push(bare.to_owned());
                }
                None => {}
            }
        }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        if name.contains('/') || self.read.len() >= MOST_PROFILES {
            return None;
        }
        PROFILES.iter().find_map(|dir| {
            let file = format!("{dir}/{name}/tuned.conf");
            if self.read.contains(&file) {
                return None;
            }
            let text = self.process.read(self.root, &file)?;
            self.read.insert(file);
            Some(text)
        })
    }

    fn add(&mut self, text: &str) {
        let mut own = parse(text);
        let main = own.remove("main").unwrap_or_default();
        let include = main.options.get("include").cloned().unwrap_or_default();
        self.load(include.split([',', ';']).map(str::trim));
        for (name, unit) in own {
            overlay(&mut self.units, name, unit);
        }
    }
}

fn is_of(file: &str, profile: &str) -> bool {
    file.ends_with(&format!("/{profile}/tuned.conf"))
}

/// The sections of a file; none where it cannot be understood, as tuned itself then refuses it.
fn parse(text: &str) -> Units {
    let mut ini = Ini::new_cs();
    ini.set_inline_comment_symbols(Some(&['#']));
    let sections = ini.read(text.to_owned()).unwrap_or_default();
    let unit = |options: std::collections::HashMap<String, Option<String>>| Unit {
        options: options
            .into_iter()
            .map(|(name, value)| (name, value.unwrap_or_default()))
            .collect(),
    };
    sections
        .into_iter()
        .map(|(name, options)| (name, unit(options)))
        .collect()
}

fn overlay(units: &mut Units, name: String, unit: Unit) {
    let Some(known) = units.get_mut(&name).filter(|_| !unit.is("replace", false)) else {
        units.insert(name, unit);
        return;
    };
    // What every section has, and what is therefore set anew by each.
    for own in ["type", "enabled", "devices"] {
        known.options.remove(own);
    }
    for dropped in unit.option("drop").split([',', ';', ' ']) {
        known.options.remove(dropped);
    }
    known.options.extend(unit.options);
}

impl Unit {
    fn option(&self, name: &str) -> &str {
        self.options.get(name).map_or("", String::as_str)
    }

    fn is(&self, name: &str, default: bool) -> bool {
        match self.option(name).to_ascii_lowercase().as_str() {
            "" => default,
            value => ["1", "true", "yes", "on", "y", "t"].contains(&value),
        }
    }

    fn claims(&self, name: &str) -> Vec<Claim> {
        if !self.is("enabled", true) {
            return vec![];
        }
        let plugin = match self.option("type") {
            "" => name,
            plugin => plugin,
        };
        let options = self.options.iter().filter(|(_, value)| !value.is_empty());
        let claims = options.filter_map(|(option, value)| {
            let source = format!("[{name}] {option}={value}");
            match plugin {
                "disk" => self.disk_claim(option, source),
                "sysfs" => sysfs_claim(option, source),
                // It sets the CPUs of all processes but those that it is told to leave alone.
                "scheduler" if option == "isolated_cores" => Some(Claim::Binding {
                    source,
                    pids: vec![],
                }),
                _ => None,
            }
        });
        claims.collect()
    }

    fn disk_claim(&self, option: &str, source: String) -> Option<Claim> {
        let knobs: &[DeviceKnob] = match option {
            // With the scheduler go its side effects.
            "elevator" => &[
                DeviceKnob::Scheduler,
                DeviceKnob::NrRequests,
                DeviceKnob::Wbt,
            ],
            "readahead" | "readahead_multiply" => &[DeviceKnob::ReadAhead],
            _ => return None,
        };
        Some(Claim::Queue(QueueClaim {
            source,
            devices: DevicePattern::new(self.option("devices")),
            knobs: knobs.iter().copied().collect(),
        }))
    }
}

/// `/sys/block/sd*/queue/nr_requests` and whatever else leads to a queue's directory.
fn sysfs_claim(path: &str, source: String) -> Option<Claim> {
    let (above, setting) = path.strip_prefix("/sys/")?.split_once("/queue/")?;
    let device = above.rsplit('/').next()?;
    let setting = Pattern::new(setting).ok()?;
    let knobs = DeviceKnob::ALL.into_iter();
    let knobs: BTreeSet<DeviceKnob> = knobs.filter(|knob| setting.matches(knob.name())).collect();
    (!knobs.is_empty()).then(|| {
        Claim::Queue(QueueClaim {
            source,
            devices: DevicePattern::new(device),
            knobs,
        })
    })
}

impl DevicePattern {
    fn new(rules: &str) -> Self {
        let rules = rules
            .split([' ', '\t', ','])
            .filter(|rule| !rule.is_empty());
        let (left_out, wanted): (Vec<&str>, Vec<&str>) =
            rules.partition(|rule| rule.starts_with('!'));
        // What is no pattern stands for itself, and a variable of tuned's may be anything.
        let pattern = |rule: &&str| {
            let rule = rule.trim_start_matches('!');
            let rule = if rule.contains("${") { "*" } else { rule };
            Pattern::new(rule)
                .or_else(|_| Pattern::new(&Pattern::escape(rule)))
                .unwrap_or_default()
        };
        Self {
            wanted: wanted.iter().map(pattern).collect(),
            left_out: left_out.iter().map(pattern).collect(),
        }
    }

    /// Whether the device of this kernel name is among them.
    #[must_use]
    pub fn has(&self, device: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(device));
        (self.wanted.is_empty() || any(&self.wanted)) && !any(&self.left_out)
    }
}

impl fmt::Display for QueueClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let knobs: Vec<&str> = self.knobs.iter().map(|knob| knob.name()).collect();
        write!(
            f,
            "{} of devices {} ({})",
            knobs.join(", "),
            self.devices,
            self.source
        )
    }
}

impl fmt::Display for DevicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = self.wanted.iter().map(ToString::to_string);
        let left_out = self.left_out.iter().map(|pattern| format!("!{pattern}"));
        let rules: Vec<String> = wanted.chain(left_out).collect();
        f.write_str(if rules.is_empty() { "*" } else { "" })?;
        f.write_str(&rules.join(" "))
    }
}
