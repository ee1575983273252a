//! Q of joint decisions from what a network says of their rows.

use tch::{Device, Kind, TchError, Tensor};

use super::decisions::{Decisions, Rows, StepRows};
use crate::LearnError;
use crate::network::Network;

/// Of what Q is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// What was taken.
    Taken,
    /// What the policy would take: the expectation over its joint choice.
    Expected,
}

/// Mean over the rows of each joint decision of b(x) + Σ over heads with a choice of A(x, a); `[steps]`.
///
/// # Errors
/// If libtorch fails.
pub fn q(
    network: &Network,
    decisions: &Decisions,
    steps: &[usize],
    of: Of,
) -> Result<Tensor, LearnError> {
    let own: Vec<&StepRows> = steps.iter().map(|step| &decisions.steps[*step]).collect();
    let mut sum: Option<Tensor> = None;
    for (rows, is_disks) in [(&decisions.disks, true), (&decisions.devices, false)] {
        let Some(rows) = rows else { continue };
        let picked = Picked::of(&own, is_disks)?;
        if picked.count == 0 {
            continue;
        }
        let found = of_rows(network, rows, &picked.rows, of, is_disks)?;
        let shares = picked.shares.f_to_kind(found.kind())?;
        let zeros = Tensor::f_zeros([steps.len() as i64], (found.kind(), Device::Cpu))?;
        let part = zeros.f_index_add(0, &picked.steps, &found.f_mul(&shares)?)?;
        sum = Some(match sum {
            Some(sum) => sum.f_add(&part)?,
            None => part,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => Ok(Tensor::f_zeros(
            [steps.len() as i64],
            (Kind::Float, Device::Cpu),
        )?),
    }
}

/// Rows of one kind of some joint decisions.
struct Picked {
    count: usize,
    /// Their numbers.
    rows: Tensor,
    /// The place of each one's joint decision among those that are asked for.
    steps: Tensor,
    /// One over the number of rows of that joint decision, of both kinds.
    shares: Tensor,
}

impl Picked {
    fn of(of: &[&StepRows], is_disks: bool) -> Result<Self, TchError> {
        let (mut rows, mut steps, mut shares) = (vec![], vec![], vec![]);
        for (place, step) in of.iter().enumerate() {
            let all = step.disks.len() + step.devices.len();
            let own = if is_disks { &step.disks } else { &step.devices };
            for row in own.clone() {
                rows.push(row as i64);
                steps.push(place as i64);
                shares.push(1.0 / all as f64);
            }
        }
        Ok(Self {
            count: rows.len(),
            rows: Tensor::f_from_slice(&rows)?,
            steps: Tensor::f_from_slice(&steps)?,
            shares: Tensor::f_from_slice(&shares)?,
        })
    }
}

fn of_rows(
    network: &Network,
    rows: &Rows,
    picked: &Tensor,
    of: Of,
    is_disks: bool,
) -> Result<Tensor, TchError> {
    let batch = rows.batch.select(picked)?;
    let (scores, mut sum) = if is_disks {
        (network.scores(&batch)?, network.values(&batch)?)
    } else {
        let zeros = Tensor::f_zeros([picked.size1()?], (batch.own.kind(), Device::Cpu))?;
        (network.device_scores(&batch)?, zeros)
    };
    let weights = match of {
        Of::Taken => &rows.taken,
        Of::Expected => &rows.expected,
    };
    for (head, (scores, weights)) in scores.iter().zip(weights).enumerate() {
        let weighed = scores.f_mul(&weights.f_index_select(0, picked)?)?;
        let own = weighed.f_sum_dim_intlist([1_i64].as_slice(), false, None::<Kind>)?;
        sum = sum.f_add(&own.f_mul(&batch.free.f_select(1, head as i64)?)?)?;
    }
    Ok(sum)
}
