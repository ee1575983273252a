//! What the printed script would do in a world, by its own rules.

use std::collections::BTreeSet;

use super::world::{Sight, UUIDS, World, knobs};
use super::*;
use crate::knob::DIRECT;

/// What the printed script would leave in force, by its own rules, of the values in `now`.
pub(super) fn run_script(
    script: &str,
    world: &World,
    now: impl Fn(usize, &Knob) -> String,
) -> Vec<(usize, Knob, String)> {
    let mut set = vec![];
    let mut lines = script
        .lines()
        .skip_while(|line| !line.starts_with("begin '"));
    while let (Some(begin), Some(step)) = (lines.next(), lines.next()) {
        let words = words(begin);
        let [uuid, boot, started, ..] = &words[1..] else {
            unreachable!("{begin}")
        };
        let guest = UUIDS.iter().position(|known| known == uuid).unwrap();
        let life = world.life(guest);
        let is_it = life.boot_id == *boot && life.qemu_started_ticks.to_string() == *started;
        if is_it && world.sights[guest] != Sight::Off {
            set.extend(
                step_of(&self::words(step), |knob| now(guest, knob)).map(|(k, v)| (guest, k, v)),
            );
        }
        for line in lines.by_ref() {
            if line.starts_with('#') {
                break;
            }
        }
    }
    set
}

/// What one step sets: the original, where what is in force is what we set.
fn step_of(words: &[String], now: impl Fn(&Knob) -> String) -> Option<(Knob, String)> {
    let [channel, polling, cache, histogram, throttle] = knobs();
    let (knob, values) = match words[0].as_str() {
        "pin" => (channel, &words[3..6]),
        "polling" => (polling, &words[3..6]),
        "cache" => {
            let direct = format!("\"direct\":{}", words[3] == DIRECT);
            assert!(words[6].contains(&direct), "{words:?}");
            (cache, &words[3..6])
        }
        "throttle" => (throttle, &words[3..6]),
        // The monitor has no command that tells whose histogram it is.
        "histogram" => return Some((histogram, "absent".to_owned())),
        step => {
            assert_eq!(step, "fail", "{words:?}");
            return None;
        }
    };
    let ours: BTreeSet<&String> = values[1..].iter().collect();
    let is_ours = ours.contains(&now(&knob)) && now(&knob) != values[0];
    is_ours.then(|| (knob, values[0].clone()))
}

/// The words of a line of shell in which nothing is quoted but by single quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (vec![], String::new(), false);
    for c in line.trim().chars() {
        match c {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words
}
