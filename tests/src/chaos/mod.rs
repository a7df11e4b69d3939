//! Faults without end on real clusters, under load, and the question afterwards: is everything there, in order, once?
//!
//! A campaign is a row of acts. Each has a cluster of its own, on disks of its own, a load, and a seed from which its faults are
//! drawn; the seed of the first act is the campaign's, and each other act has the next number. So a failure in act 7 of seed 100
//! is looked at again with `--seed 106`. (The faults are the same then; the moments at which they strike are the machine's.)
//!
//! An act goes in rounds: faults begin, last for a while, are mended, and then a write must be acknowledged that was sent
//! afterwards. At the end the load stops, all nodes must come to the same state, and the history is checked against what
//! every one of them holds.

mod canary;
mod fault;
mod pulse;
mod report;
mod stage;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use tokio::sync::watch;

use crate::{LoadOptions, PATIENCE};
pub use canary::{Canary, Lateness};
pub use fault::{Fault, How, Kind, Scene};
use pulse::Pulse;
pub use report::{Report, Round};
pub use stage::Means;
use stage::{Stage, StageOptions};

/// An act ends after this time, or after that many rounds, so that no log grows long: a node reads all of it when it starts.
const ACT: Duration = Duration::from_secs(60);
const ROUNDS_OF_AN_ACT: u64 = 100;
/// How long faults last at most.
const LONGEST_HOLD: Duration = Duration::from_millis(3000);

/// How often the processes are looked at while nobody serves.
const LOOK: Duration = Duration::from_millis(500);

/// What a campaign does.
#[derive(Clone, Debug)]
pub struct ChaosOptions {
    /// The server.
    pub program: PathBuf,
    /// More arguments for every node.
    pub args: Vec<String>,
    /// Whether each act has servers of another of the [`STACKS`], as its seed says.
    pub every_stack: bool,
    /// The seed of the first act.
    pub seed: u64,
    /// How many nodes; none: 3 or 5, as each act's seed says.
    pub nodes: Option<u64>,
    /// How long.
    pub length: Length,
    /// No other kinds of faults than these; empty: all.
    pub only: Vec<Kind>,
    /// Where directories are made; none: where the system wants temporary files.
    pub dir: Option<PathBuf>,
}

/// What servers can be made of: each transport with each store and each engine.
pub const STACKS: [[&str; 6]; 8] = [
    ["--transport", "grpc", "--store", "file", "--engine", "memory"],
    ["--transport", "tarpc", "--store", "file", "--engine", "memory"],
    ["--transport", "grpc", "--store", "redb", "--engine", "memory"],
    ["--transport", "tarpc", "--store", "redb", "--engine", "memory"],
    ["--transport", "grpc", "--store", "file", "--engine", "redb"],
    ["--transport", "tarpc", "--store", "file", "--engine", "redb"],
    ["--transport", "grpc", "--store", "redb", "--engine", "redb"],
    ["--transport", "tarpc", "--store", "redb", "--engine", "redb"],
];

/// How long a campaign is, and of what.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    /// Every kind of fault, for so long.
    Time(Duration),
    /// So many cycles of `kill -9`, as quickly as the cluster recovers: kill, start, first acknowledged write, next.
    Kills(u64),
}

/// A campaign that failed.
#[derive(Debug)]
pub struct Failed {
    /// What went wrong.
    pub error: Error,
    /// The act that it happened in.
    pub act: u64,
    /// The seed that begins with that act.
    pub seed: u64,
    /// What was being done.
    pub doing: String,
    /// Where all data and logs are kept, if there are any.
    pub kept: Option<PathBuf>,
    /// What had been done before.
    pub report: Report,
    /// Whether the machine may be the reason.
    pub lateness: Lateness,
}

/// Runs a campaign until its end, or until `stop` becomes true: then the act at hand is brought to its end, and checked.
/// Every round is told to `say`.
///
/// # Errors
/// The first act that failed.
pub async fn run(
    options: &ChaosOptions,
    mut stop: watch::Receiver<bool>,
    say: &dyn Fn(&str),
) -> Result<Report, Box<Failed>> {
    let begun = Instant::now();
    let means = Means::find();
    let canary = Canary::start();
    let mut report = Report::new(means.skipped.clone());
    for act in 0.. {
        let left = match options.length {
            Length::Time(length) => length.checked_sub(begun.elapsed()).map(|time| (time.min(ACT), u64::MAX)),
            Length::Kills(kills) => {
                kills.checked_sub(report.kill_cycles).map(|left| (Duration::MAX, left.min(ROUNDS_OF_AN_ACT)))
            }
        };
        let Some((time, rounds)) = left.filter(|(time, rounds)| !time.is_zero() && *rounds > 0 && !*stop.borrow())
        else {
            break;
        };
        let seed = options.seed.wrapping_add(act);
        let mut player = Player { options, seed, time, rounds, say, doing: "starting the cluster".into() };
        let outcome = player.act(&means, &mut stop, &mut report).await;
        report.took = begun.elapsed();
        if let Err((error, kept)) = outcome {
            let lateness = canary.lateness();
            return Err(Box::new(Failed { error, act: act + 1, seed, doing: player.doing, kept, report, lateness }));
        }
    }
    Ok(report)
}

/// One act.
struct Player<'a> {
    options: &'a ChaosOptions,
    seed: u64,
    time: Duration,
    rounds: u64,
    say: &'a dyn Fn(&str),
    /// For the report of a failure.
    doing: String,
}

impl Player<'_> {
    async fn act(
        &mut self,
        means: &Means,
        stop: &mut watch::Receiver<bool>,
        report: &mut Report,
    ) -> Result<(), (Error, Option<PathBuf>)> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let few = random.u32(..4) > 0;
        let options = StageOptions {
            program: self.options.program.clone(),
            nodes: self.options.nodes.unwrap_or(if few { 3 } else { 5 }),
            args: self.args(),
            dir: self.options.dir.clone(),
            only_kills: self.only_kills(),
            only: self.options.only.clone(),
        };
        let mut stage = Stage::set(&options, means, &mut random).map_err(|error| (error, None))?;
        let args = options.args.join(" ");
        (self.say)(&format!("seed {}: {} nodes, {} {args}", self.seed, options.nodes, stage.disks_in_words()));
        match self.play(&mut stage, &mut random, stop, report).await {
            Ok(()) => stage.cluster.finish().map_err(|error| (error, None)),
            Err(error) => {
                // Whether it could be kept is the smaller matter.
                let kept = stage.cluster.keep().inspect_err(|error| (self.say)(&format!("{error:#}"))).ok();
                Err((error, kept))
            }
        }
    }

    /// What servers are told in addition.
    fn args(&self) -> Vec<String> {
        let stack = &STACKS[(self.seed % STACKS.len() as u64) as usize];
        let stack = if self.options.every_stack { &stack[..] } else { &[] };
        stack.iter().copied().map(str::to_owned).chain(self.options.args.iter().cloned()).collect()
    }

    fn only_kills(&self) -> bool {
        match self.options.length {
            Length::Time(_) => false,
            Length::Kills(_) => true,
        }
    }

    async fn play(
        &mut self,
        stage: &mut Stage,
        random: &mut fastrand::Rng,
        stop: &mut watch::Receiver<bool>,
        report: &mut Report,
    ) -> Result<()> {
        stage.cluster.launch_all().await?;
        let load = stage.cluster.load(LoadOptions { pause: Duration::from_millis(10), ..LoadOptions::default() })?;
        let pulse = Pulse::start(&stage.cluster.servers())?;
        load.first_after(Instant::now(), PATIENCE).await?;
        let begun = Instant::now();
        let mut rounds = Vec::new();
        while begun.elapsed() < self.time && (rounds.len() as u64) < self.rounds && !*stop.borrow() && stage.has_more()
        {
            // What one round draws may depend on who leads, but moves no other round.
            rounds.push(self.round(stage, &pulse, &mut random.fork(), stop).await?);
        }
        self.doing = "comparing all nodes with the history".into();
        (self.say)("everything is mended; comparing all nodes with the history");
        let (pulse, history) = tokio::join!(pulse.stop(), load.stop());
        let (served, history) = (pulse?, history?);
        let writes = stage.cluster.verify(&history).await?;
        stage.cluster.same_contents().await?;
        stage.cluster.ensure_no_panic()?;
        report.add(&rounds, served, writes, history.reads);
        Ok(())
    }

    async fn round(
        &mut self,
        stage: &mut Stage,
        pulse: &Pulse,
        random: &mut fastrand::Rng,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Round> {
        // Since the last round, too.
        stage.ensure_all_run()?;
        let scene = stage.scene().await;
        let faults = if self.only_kills() { vec![scene.kill(random)] } else { scene.round(random) };
        self.doing = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ");
        let from = Instant::now();
        let hold = if self.only_kills() { Duration::from_millis(100) } else { LONGEST_HOLD };
        let mut killed = 0;
        for fault in &faults {
            stage.begin(fault).await.with_context(|| format!("while it began: {fault}"))?;
            killed += fault.killed();
            if self.only_kills() && fault.victims.len() * 2 < scene.ids.len() {
                pulse.first_after(Instant::now(), PATIENCE).await.context("a majority lives, and does not serve")?;
            }
            // Most are short, so that the next comes before all have recovered.
            wait(hold.mul_f64(random.f64() * random.f64()), stop).await;
        }
        for fault in faults.iter().rev() {
            stage.end(fault).with_context(|| format!("while it was mended: {fault}"))?;
        }
        let mended = Instant::now();
        let until = served_again(stage, pulse).await?;
        let led = scene.leader.map_or_else(|| "nobody led".into(), |id| format!("n{id} led"));
        (self.say)(&format!("  {:>5.2} s  {}, {led}", until.duration_since(from).as_secs_f64(), self.doing));
        Ok(Round { kinds: faults.iter().map(|fault| fault.kind).collect(), killed, from, mended, until })
    }
}

/// Waits for an acknowledged write that is sent from now on. All nodes must be running meanwhile.
async fn served_again(stage: &mut Stage, pulse: &Pulse) -> Result<Instant> {
    let mended = Instant::now();
    loop {
        let first = pulse.first_after(mended, mended.elapsed() + LOOK).await;
        stage.ensure_all_run()?;
        match first {
            Ok(at) => return Ok(at),
            Err(_) if mended.elapsed() < PATIENCE => {}
            Err(error) => return Err(error.context("everything is mended, and nobody serves")),
        }
    }
}

/// Waits, but not longer than until the campaign is to end.
async fn wait(time: Duration, stop: &mut watch::Receiver<bool>) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        // Fails when nobody can stop it any more: then it is over as well.
        _ = stop.wait_for(|stop| *stop) => {}
    }
}
