//! The renaming of channels after which two settings agree most: an assignment problem.

use blkpilot_env::Level;

/// An injective renaming of the channels of one class.
pub(super) struct Renaming<'a> {
    class: &'a [Level],
    /// New place in the class by old place.
    to: Vec<usize>,
}

impl<'a> Renaming<'a> {
    /// The renaming with the greatest sum of `gain(from, to)`: branch and bound, exact.
    pub(super) fn best(class: &'a [Level], gain: impl Fn(Level, Level) -> f64) -> Self {
        let gains: Vec<Vec<f64>> = class
            .iter()
            .map(|from| class.iter().map(|to| gain(*from, *to)).collect())
            .collect();
        let most = |row: &Vec<f64>| row.iter().copied().fold(0.0, f64::max);
        let mut hopes: Vec<f64> = gains.iter().map(most).collect();
        for i in (1..hopes.len()).rev() {
            hopes[i - 1] += hopes[i];
        }
        hopes.push(0.0);
        let mut search = Assignment {
            gains: &gains,
            hopes: &hopes,
            taken: vec![None; class.len()],
            best: vec![None; class.len()],
            best_gain: -1.0,
        };
        search.from(0, 0.0);
        let to = complete(&search.best);
        Self { class, to }
    }

    pub(super) fn apply(&self, level: Level) -> Level {
        let place = self.class.iter().position(|member| *member == level);
        place.map_or(level, |i| self.class[self.to[i]])
    }
}

struct Assignment<'a> {
    gains: &'a [Vec<f64>],
    /// Most that rows from i on can still gain.
    hopes: &'a [f64],
    taken: Vec<Option<usize>>,
    best: Vec<Option<usize>>,
    best_gain: f64,
}

impl Assignment<'_> {
    fn from(&mut self, row: usize, gain: f64) {
        if gain + self.hopes[row] <= self.best_gain {
            return;
        }
        if row == self.gains.len() {
            self.best_gain = gain;
            self.best.clone_from(&self.taken);
            return;
        }
        let mut columns: Vec<usize> = (0..self.gains.len())
            .filter(|c| self.gains[row][*c] > 0.0 && !self.taken[..row].contains(&Some(*c)))
            .collect();
        columns.sort_by(|a, b| self.gains[row][*b].total_cmp(&self.gains[row][*a]));
        for column in columns {
            self.taken[row] = Some(column);
            self.from(row + 1, gain + self.gains[row][column]);
        }
        self.taken[row] = None;
        self.from(row + 1, gain);
    }
}

/// Gives each row without a column one that is free, its own if it can.
fn complete(assigned: &[Option<usize>]) -> Vec<usize> {
    let mut free: Vec<usize> = (0..assigned.len())
        .filter(|column| !assigned.contains(&Some(*column)))
        .collect();
    let mut to = Vec::with_capacity(assigned.len());
    for (row, column) in assigned.iter().enumerate() {
        to.push(column.unwrap_or_else(|| {
            let own = free.iter().position(|c| *c == row).unwrap_or(0);
            free.remove(own)
        }));
    }
    to
}
