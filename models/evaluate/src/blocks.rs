//! What is resampled: host × time, or host × episode, no more of them than can be held.

use std::collections::HashMap;

use crate::options::Block;

/// Blocks at most; more are merged with their neighbours.
const MOST_BLOCKS: usize = 4096;
/// Blocks × steps of a window at most.
const MOST_CELLS: usize = 200_000;
/// Fewer blocks than this are never merged for the sake of a long window.
const LEAST_BLOCKS: usize = 64;

/// Numbers of blocks, in the order in which they begin.
#[derive(Debug)]
pub(crate) struct Blocks {
    rule: Block,
    most: usize,
    /// How often the length has been doubled.
    doublings: u32,
    numbers: HashMap<(usize, i128), usize>,
}

impl Blocks {
    pub(crate) fn new(rule: Block, horizon: usize) -> Self {
        Self {
            rule,
            most: (MOST_CELLS / horizon).clamp(LEAST_BLOCKS, MOST_BLOCKS),
            doublings: 0,
            numbers: HashMap::new(),
        }
    }

    fn key(&self, at_us: i64, episode: u128) -> i128 {
        match self.rule {
            Block::Seconds(seconds) => {
                let length_us = ((seconds * 1e6) as i64).max(1);
                i128::from(at_us.div_euclid(length_us)) >> self.doublings
            }
            Block::Episode => episode as i128,
        }
    }

    /// The number of the block that a window belongs to which begins there.
    pub(crate) fn number(&mut self, host: usize, at_us: i64, episode: u128) -> usize {
        let key = (host, self.key(at_us, episode));
        let next = self.numbers.len();
        let number = *self.numbers.entry(key).or_insert(next);
        match self.rule {
            Block::Seconds(_) => {
                while self.numbers.len() > self.most && self.doublings < 40 {
                    self.double();
                }
                number
            }
            // Episodes follow each other, so merging every so manieth keeps them apart in time.
            Block::Episode => number % self.most,
        }
    }

    /// Makes blocks of twice the length. Numbers given before are of no use then.
    fn double(&mut self) {
        self.doublings += 1;
        let mut old: Vec<((usize, i128), usize)> = self.numbers.drain().collect();
        old.sort_unstable_by_key(|(_, number)| *number);
        for ((host, key), _) in old {
            let next = self.numbers.len();
            self.numbers.entry((host, key >> 1)).or_insert(next);
        }
    }

    /// Length of a block after all doublings, in seconds; `None` of episodes.
    pub(crate) fn seconds(&self) -> Option<f64> {
        match self.rule {
            Block::Seconds(seconds) => Some(seconds * f64::from(self.doublings).exp2()),
            Block::Episode => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_of_one_host_and_time_and_double_when_there_are_too_many() {
        let mut blocks = Blocks::new(Block::Seconds(10.0), 10);
        assert_eq!(blocks.number(0, 9_999_999, 1), 0);
        assert_eq!(blocks.number(0, 10_000_000, 1), 1);
        assert_eq!(blocks.number(1, 0, 1), 2);
        assert_eq!(blocks.number(0, 0, 2), 0);
        for i in 0..10_000 {
            blocks.number(0, i * 10_000_000, 1);
        }
        assert!(blocks.numbers.len() <= MOST_BLOCKS);
        assert_eq!(blocks.seconds(), Some(40.0));
        let same = blocks.number(0, 39_000_000, 1);
        assert_eq!(blocks.number(0, 0, 1), same);
        assert_ne!(blocks.number(0, 40_000_000, 1), same);
    }

    #[test]
    fn episodes_are_blocks_of_their_own_up_to_the_bound() {
        let mut blocks = Blocks::new(Block::Episode, 1000);
        let most = blocks.most;
        let numbers: Vec<usize> = (0..2 * most)
            .map(|i| blocks.number(0, 0, i as u128))
            .collect();
        assert_eq!((numbers[most - 1], numbers[most]), (most - 1, 0));
        assert_eq!(blocks.numbers.len().min(blocks.most), most);
        assert_eq!(blocks.number(0, 5, 3), 3);
    }
}
