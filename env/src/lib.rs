//! The reinforcement-learning contract of a KVM host: specs, spaces, samples, reward, and the simulated host.
