//! Rows per second of estimators of offline evaluation, with the Open Bandit Pipeline and SCOPE-RL beside
//! them.
//!
//! Both sides get the same arrays in memory and make one estimate of them, each with its own checks of what
//! it is given, in turn and round by round; the figures are medians over the rounds. Where
//! `OPE_PEER_PYTHON` names a Python with both packages, `OPE_PEER_PROGRAM` is run in it; each estimate must
//! agree with ours to 1e-9, or the bench fails. Beside both stands what adding up the same arrays takes, which
//! is what memory allows one core. With `--json FILE` the figures are also written there.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Instant;

use blkpilot_env::Rng;
use blkpilot_models::ope::Matrix;
use blkpilot_models::ope::bandit::{BanditLog, Columns, Estimator, Head, Shrinkage, Stream};
use blkpilot_models::ope::moments::sum;
use blkpilot_models::ope::sequential::PerDecisionStream;
use rand::{RngExt as _, SeedableRng as _};

const ACTIONS: usize = 8;
const STEPS: usize = 20;
const TRAJECTORIES: usize = 50_000;
/// Bandit rows, and steps of all trajectories.
const ROWS: usize = STEPS * TRAJECTORIES;
const GAMMA: f64 = 0.95;
const ROUNDS: usize = 7;
/// How far two estimates may differ, relative to the larger of their size and 1.
const TOLERANCE: f64 = 1e-9;
/// Estimate, and who is beside us.
const ESTIMATES: [(&str, &str); 3] = [("ips", "obp"), ("dr", "obp"), ("pdis", "scope_rl")];

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ope: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let json = std::env::args().skip_while(|arg| arg != "--json").nth(1);
    let arrays = Arrays::drawn(&mut Rng::seed_from_u64(1));
    let dir = tempfile::tempdir()?;
    let mut peer = match std::env::var_os("OPE_PEER_PYTHON") {
        Some(python) => {
            arrays.write(dir.path())?;
            Some(Peer::start(&python, dir.path())?)
        }
        None => None,
    };
    let mut figures = BTreeMap::new();
    for (name, other) in ESTIMATES {
        let figure = beside(name, &arrays, peer.as_mut())?;
        figure.print(name, other);
        figures.insert(name, figure.json(other));
    }
    if let Some(file) = json {
        let report = serde_json::json!({ "name": "ope", "rows": ROWS, "ope_rows_per_s": figures });
        std::fs::write(&file, format!("{report:#}\n"))?;
    }
    Ok(())
}

/// The arrays of a log of decisions between [`ACTIONS`]. Read as trajectories, [`STEPS`] rows follow one
/// another.
struct Arrays {
    action: Vec<u32>,
    pscore: Vec<f64>,
    reward: Vec<f64>,
    /// `[ROWS × ACTIONS]`, as `q_hat`.
    evaluation: Vec<f64>,
    q_hat: Vec<f64>,
}

impl Arrays {
    /// Behaviour policies from Dirichlet(1, …, 1); the evaluation policy is four parts of it and one of
    /// another draw, so that products of twenty weights stay numbers worth comparing.
    fn drawn(rng: &mut Rng) -> Self {
        let mut arrays = Self {
            action: Vec::with_capacity(ROWS),
            pscore: Vec::with_capacity(ROWS),
            reward: Vec::with_capacity(ROWS),
            evaluation: Vec::with_capacity(ROWS * ACTIONS),
            q_hat: Vec::with_capacity(ROWS * ACTIONS),
        };
        for _ in 0..ROWS {
            let (behaviour, other) = (simplex(rng), simplex(rng));
            let action = pick(&behaviour, rng.random());
            let blend = behaviour.iter().zip(&other).map(|(b, o)| 0.8 * b + 0.2 * o);
            arrays.evaluation.extend(blend);
            arrays.action.push(action as u32);
            arrays.pscore.push(behaviour[action]);
            arrays.reward.push(rng.random::<f64>() - 0.3);
            let q_hat = std::iter::repeat_with(|| rng.random::<f64>() - 0.3);
            arrays.q_hat.extend(q_hat.take(ACTIONS));
        }
        arrays
    }

    fn write(&self, dir: &Path) -> Outcome<()> {
        let action = self
            .action
            .iter()
            .map(|action| i64::from(*action).to_le_bytes());
        write_npy(&dir.join("action.npy"), "<i8", &[ROWS], action)?;
        let numbers = [
            ("pscore.npy", &self.pscore),
            ("reward.npy", &self.reward),
            ("evaluation.npy", &self.evaluation),
            ("q_hat.npy", &self.q_hat),
        ];
        for (name, values) in numbers {
            let shape = [ROWS, values.len() / ROWS];
            let shape = if shape[1] == 1 { &shape[..1] } else { &shape };
            let values = values.iter().map(|value| value.to_le_bytes());
            write_npy(&dir.join(name), "<f8", shape, values)?;
        }
        Ok(())
    }

    fn log<'a>(&'a self, q_hat: Option<&'a [f64]>) -> Outcome<BanditLog<'a>> {
        let q_hat = q_hat
            .map(|values| Matrix::new(values, ACTIONS))
            .transpose()?;
        let head = Head {
            name: "",
            action: &self.action,
            pscore: &self.pscore,
            evaluation: Matrix::new(&self.evaluation, ACTIONS)?,
            behaviour: None,
            mask: None,
            q_hat,
        };
        let (reward, heads) = (&self.reward, vec![head]);
        Ok(BanditLog { reward, heads })
    }

    /// Our estimate by this name.
    fn estimate(&self, name: &str) -> Outcome<f64> {
        let none = Shrinkage::None;
        match name {
            "ips" => stream(Estimator::InverseWeight(none), &self.log(None)?),
            "dr" => stream(Estimator::DoublyRobust(none), &self.log(Some(&self.q_hat))?),
            _ => self.per_decision(),
        }
    }

    /// The sum of all that the estimate of this name reads.
    fn total(&self, name: &str) -> f64 {
        let actions: u64 = self.action.iter().map(|action| u64::from(*action)).sum();
        let q_hat: &[f64] = if name == "dr" { &self.q_hat } else { &[] };
        let columns = [&self.evaluation, &self.pscore, &self.reward, q_hat];
        actions as f64 + columns.map(sum).iter().sum::<f64>()
    }

    /// In chunks of whole trajectories.
    fn per_decision(&self) -> Outcome<f64> {
        const TOGETHER: usize = 50;
        let log = self.log(None)?;
        let mut estimate = PerDecisionStream::new(STEPS, GAMMA)?;
        let mut columns = Columns::default();
        let lengths = [STEPS; TOGETHER];
        for begin in (0..ROWS).step_by(STEPS * TOGETHER) {
            log.columns_of(begin..begin + STEPS * TOGETHER, &mut columns)?;
            estimate.push(&lengths, &columns.weight, &columns.reward)?;
        }
        Ok(estimate.summary()?.estimate)
    }
}

fn stream(estimator: Estimator, log: &BanditLog<'_>) -> Outcome<f64> {
    let mut stream = Stream::new(&[estimator])?;
    stream.push_log(log)?;
    let mut estimates = stream.summary().estimates;
    let (_, summary) = estimates.pop().ok_or("one estimator has one estimate")?;
    Ok(summary?.estimate)
}

/// Writes an array in C order as numpy's format 1.0: magic, length of the header, header, values.
fn write_npy(
    path: &Path,
    kind: &str,
    shape: &[usize],
    values: impl Iterator<Item = [u8; 8]>,
) -> Outcome<()> {
    let sizes: String = shape.iter().map(|size| format!("{size},")).collect();
    let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({sizes}), }}");
    // Values begin at a multiple of 64 bytes: 10 before the header, a newline after it.
    let width = (10 + header.len() + 1).next_multiple_of(64) - 11;
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(b"\x93NUMPY\x01\x00")?;
    file.write_all(&u16::try_from(width + 1)?.to_le_bytes())?;
    writeln!(file, "{header:width$}")?;
    for value in values {
        file.write_all(&value)?;
    }
    Ok(file.flush()?)
}

fn simplex(rng: &mut Rng) -> [f64; ACTIONS] {
    let draws: [f64; ACTIONS] = std::array::from_fn(|_| -(1.0 - rng.random::<f64>()).ln() + 1e-3);
    let sum: f64 = draws.iter().sum();
    draws.map(|draw| draw / sum)
}

fn pick(probabilities: &[f64], mut draw: f64) -> usize {
    let passed = probabilities.iter().position(|p| {
        draw -= p;
        draw < 0.0
    });
    passed.unwrap_or(probabilities.len() - 1)
}

/// Median seconds of both sides.
struct Figure {
    ours: f64,
    other: Option<f64>,
    /// Of adding up what is read.
    reading: f64,
}

/// Makes an estimate on both sides, in turn.
fn beside(name: &str, arrays: &Arrays, mut peer: Option<&mut Peer>) -> Outcome<Figure> {
    let (mut ours, mut others, mut reading) = (vec![], vec![], vec![]);
    // Of the first round, in which memory is touched for the first time, only the estimates count.
    for round in 0..=ROUNDS {
        let started = Instant::now();
        let estimate = arrays.estimate(name)?;
        let seconds = started.elapsed().as_secs_f64();
        let other = peer.as_mut().map(|peer| peer.estimate(name)).transpose()?;
        if let Some((_, theirs)) = other {
            let scale = estimate.abs().max(1.0);
            if (theirs - estimate).abs() > TOLERANCE * scale {
                return Err(format!("{name}: {estimate} here, but {theirs} there").into());
            }
        }
        let started = Instant::now();
        std::hint::black_box(arrays.total(name));
        if round > 0 {
            reading.push(started.elapsed().as_secs_f64());
            ours.push(seconds);
            others.extend(other.map(|(seconds, _)| seconds));
        }
    }
    Ok(Figure {
        ours: median(ours),
        reading: median(reading),
        other: (!others.is_empty()).then(|| median(others)),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Figure {
    fn print(&self, name: &str, other: &str) {
        let rate = |seconds: f64| ROWS as f64 / seconds / 1e6;
        print!("{name:5} {:8.2} million rows/s", rate(self.ours));
        if let Some(seconds) = self.other {
            let ratio = seconds / self.ours;
            print!(
                "  {other:9} {:8.2} million rows/s  ratio {ratio:6.1}",
                rate(seconds)
            );
        }
        println!("  memory allows {:6.1}", rate(self.reading));
    }

    fn json(&self, other: &str) -> serde_json::Value {
        let rate = |seconds: f64| ROWS as f64 / seconds;
        let mut figure =
            serde_json::json!({ "ours": rate(self.ours), "memory": rate(self.reading) });
        if let Some(seconds) = self.other {
            figure[other] = rate(seconds).into();
            figure["ratio"] = (seconds / self.ours).into();
        }
        figure
    }
}

/// The other side: a program that has read the arrays, and makes one estimate for each line that names one.
struct Peer {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &std::ffi::OsStr, arrays: &Path) -> Outcome<Self> {
        let program = std::env::var_os("OPE_PEER_PROGRAM");
        let program =
            program.ok_or("OPE_PEER_PROGRAM names no program: run scripts/bench-peers.sh")?;
        let mut process = Command::new(python)
            .arg(program)
            .arg(arrays)
            .args([STEPS.to_string(), GAMMA.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = process.stdin.take().ok_or("the peer has no input")?;
        let answers = process.stdout.take().ok_or("the peer has no output")?;
        let answers = BufReader::new(answers);
        let mut peer = Self {
            process,
            requests,
            answers,
        };
        // Arrays are read before anything is timed.
        peer.answer()?;
        Ok(peer)
    }

    /// Seconds and estimate.
    fn estimate(&mut self, name: &str) -> Outcome<(f64, f64)> {
        writeln!(self.requests, "{name}")?;
        self.requests.flush()?;
        let answer = self.answer()?;
        let (seconds, estimate) = answer.split_once(' ').ok_or("the peer says two numbers")?;
        Ok((seconds.parse()?, estimate.parse()?))
    }

    fn answer(&mut self) -> Outcome<String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line)? {
            0 => Err("the peer has ended: what it said stands above".into()),
            _ => Ok(line.trim().to_owned()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
