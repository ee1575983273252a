//! Adam with moments that can be written down; those of libtorch's own are out of reach.

use std::collections::BTreeMap;

use tch::{TchError, Tensor, no_grad};

/// Parameters by name; gradients are given in the order of the names.
pub type Parameters = BTreeMap<String, Tensor>;

/// Constants of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

impl Default for AdamConfig {
    /// 0.9, 0.999 and, as PPO implementations have it, 1e-5.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-5,
        }
    }
}

/// First and second moment of one parameter.
#[derive(Debug)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Tensor,
    /// Running mean of its square.
    pub second: Tensor,
}

/// Adam and its state.
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    steps: u64,
    moments: BTreeMap<String, Moments>,
}

impl Adam {
    /// Zero moments for each of `parameters`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn new(config: AdamConfig, parameters: &Parameters) -> Result<Self, TchError> {
        let mut moments = BTreeMap::new();
        for (name, parameter) in parameters {
            let zeros = || parameter.f_detach()?.f_zeros_like();
            moments.insert(
                name.clone(),
                Moments {
                    first: zeros()?,
                    second: zeros()?,
                },
            );
        }
        Ok(Self {
            config,
            steps: 0,
            moments,
        })
    }

    /// Goes on from given moments, after so many steps: a pair for each parameter, in its shape. A parameter that has
    /// none stays as it is.
    #[must_use]
    pub fn resume(config: AdamConfig, steps: u64, moments: BTreeMap<String, Moments>) -> Self {
        Self {
            config,
            steps,
            moments,
        }
    }

    /// Number of steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Moments by parameter name.
    #[must_use]
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// One step. `gradients` are in the order of the parameters' names; a parameter whose gradient
    /// is undefined stays as it is.
    ///
    /// # Errors
    /// If libtorch fails.
    ///
    /// Source: Kingma and Ba 2015, algorithm 1, in PyTorch's order of operations.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &[Tensor],
        learning_rate: f64,
    ) -> Result<(), TchError> {
        self.steps += 1;
        let AdamConfig {
            beta1,
            beta2,
            epsilon,
        } = self.config;
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let step_size = learning_rate / (1.0 - beta1.powi(steps));
        let second_correction = (1.0 - beta2.powi(steps)).sqrt();
        no_grad(|| {
            for ((name, parameter), gradient) in parameters.iter().zip(gradients) {
                if !gradient.defined() {
                    continue;
                }
                let Some(Moments { first, second }) = self.moments.get_mut(name) else {
                    continue;
                };
                let _ = first.f_lerp_(gradient, 1.0 - beta1)?;
                let square = gradient.f_square()?.f_mul_scalar_(1.0 - beta2)?;
                let _ = second.f_mul_scalar_(beta2)?.f_add_(&square)?;
                let mut denominator = second.f_sqrt()?.f_div_scalar(second_correction)?;
                let change = first.f_div(&denominator.f_add_scalar_(epsilon)?)?;
                let _ = parameter
                    .shallow_clone()
                    .f_sub_(&change.f_mul_scalar(step_size)?)?;
            }
            Ok(())
        })
    }
}

/// Scales gradients so that their norm is at most `most`; returns the norm they had.
pub(crate) fn clip_gradients(gradients: &[Tensor], most: f64) -> Result<f64, TchError> {
    no_grad(|| {
        let defined: Vec<&Tensor> = gradients.iter().filter(|g| g.defined()).collect();
        let norms = defined
            .iter()
            .map(|g| g.f_norm())
            .collect::<Result<Vec<_>, _>>()?;
        let norm = Tensor::f_stack(&norms, 0)?.f_norm()?.f_double_value(&[])?;
        let scale = most / (norm + 1e-6);
        if scale < 1.0 {
            for gradient in defined {
                let _ = gradient.shallow_clone().f_mul_scalar_(scale)?;
            }
        }
        Ok(norm)
    })
}

#[cfg(test)]
mod tests {
    use tch::nn::{self, OptimizerConfig as _};
    use tch::{Device, Kind};

    use super::*;

    /// Σ (a·x + 1)⁴ over two tensors: gradients that change in size and sign.
    fn loss(x: &Tensor, y: &Tensor) -> Tensor {
        let quartic = |t: &Tensor, a: f64| (t * a + 1.0).pow_tensor_scalar(4).sum(Kind::Double);
        quartic(x, 2.0) + quartic(y, -0.5)
    }

    #[test]
    fn fifty_steps_equal_those_of_libtorch() {
        let start = || {
            [
                Tensor::from_slice(&[0.3_f64, -1.5, 2.0]),
                Tensor::from_slice(&[4.0_f64, 0.1]),
            ]
        };
        let theirs = nn::VarStore::new(Device::Cpu);
        let [x, y] = start();
        let their_x = theirs.root().add("x", x, true);
        let their_y = theirs.root().add("y", y, true);
        let config = nn::Adam {
            eps: 1e-5,
            ..nn::Adam::default()
        };
        let mut optimiser = config.build(&theirs, 0.01).unwrap();

        let [x, y] = start().map(|t| t.set_requires_grad(true));
        let ours = Parameters::from([("x".to_owned(), x), ("y".to_owned(), y)]);
        let mut adam = Adam::new(AdamConfig::default(), &ours).unwrap();
        for _ in 0..50 {
            optimiser.backward_step(&loss(&their_x, &their_y));
            let (x, y) = (&ours["x"], &ours["y"]);
            let gradients = Tensor::run_backward(&[loss(x, y)], &[x, y], false, false);
            adam.step(&ours, &gradients, 0.01).unwrap();
        }
        assert_eq!(adam.steps(), 50);
        for (mine, their) in [(&ours["x"], &their_x), (&ours["y"], &their_y)] {
            let gap = (mine - their).abs().max().double_value(&[]);
            assert!(gap < 1e-12, "{gap}");
        }
    }

    /// g = 2: m = 0.2, v = 0.004; with bias correction 2 and 4, so the first step is lr·2/(2 + ε).
    #[test]
    fn the_first_step_has_the_size_of_the_learning_rate() {
        let x = Tensor::from_slice(&[1.0_f64]).set_requires_grad(true);
        let parameters = Parameters::from([("x".to_owned(), x)]);
        let mut adam = Adam::new(
            AdamConfig {
                epsilon: 0.0,
                ..AdamConfig::default()
            },
            &parameters,
        )
        .unwrap();
        adam.step(&parameters, &[Tensor::from_slice(&[2.0_f64])], 0.1)
            .unwrap();
        assert!((parameters["x"].double_value(&[0]) - 0.9).abs() < 1e-12);
        let Moments { first, second } = &adam.moments()["x"];
        assert!((first.double_value(&[0]) - 0.2).abs() < 1e-12);
        assert!((second.double_value(&[0]) - 0.004).abs() < 1e-12);
    }

    /// Norm 5, of two tensors together.
    #[test]
    fn gradients_longer_than_the_limit_are_brought_to_it_together() {
        let gradients = || {
            [
                Tensor::from_slice(&[3.0_f64]),
                Tensor::from_slice(&[4.0_f64]),
            ]
        };
        let (long, short) = (gradients(), gradients());
        assert!((clip_gradients(&long, 1.0).unwrap() - 5.0).abs() < 1e-12);
        let [x, y] = long.map(|gradient| gradient.double_value(&[0]));
        assert!((x - 0.6).abs() < 1e-6 && (y - 0.8).abs() < 1e-6, "{x} {y}");
        clip_gradients(&short, 6.0).unwrap();
        assert_eq!(
            short.map(|gradient| gradient.double_value(&[0])),
            [3.0, 4.0]
        );
    }

    #[test]
    fn a_parameter_without_a_gradient_stays() {
        let x = Tensor::from_slice(&[1.0_f64]).set_requires_grad(true);
        let parameters = Parameters::from([("x".to_owned(), x)]);
        let mut adam = Adam::new(AdamConfig::default(), &parameters).unwrap();
        adam.step(&parameters, &[Tensor::new()], 0.1).unwrap();
        assert_eq!(parameters["x"].double_value(&[0]), 1.0);
    }
}
