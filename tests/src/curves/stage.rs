//! A cluster for one point, and the load generator's runs against it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value as Json;

use super::Options;
use super::sweep::{Series, Setting};
use super::table::Measured;
use super::usage::{Spent, memory};
use crate::process::{Process, run, tail};
use crate::{Cluster, ClusterOptions};

/// Before a run servers must have been so idle for so long: what is left of the last one, such as an image, is not of this one.
const IDLE_CORES: f64 = 0.1;
const IDLE_FOR: Duration = Duration::from_millis(200);
/// But nobody waits longer than this.
const IDLE_LIMIT: Duration = Duration::from_secs(20);
/// The load generator opens its connections in this time, before it begins.
const OPENING: Duration = Duration::from_millis(200);
/// Writing all keys takes no longer.
const FILL_LIMIT: Duration = Duration::from_secs(600);
/// What a run may take beside what it was told.
const RUN_SLACK: Duration = Duration::from_secs(30);

/// A cluster in which all keys are there.
pub(super) struct Stage {
    cluster: Cluster,
    kv: PathBuf,
    setting: Setting,
    runs: u32,
}

impl Stage {
    /// Starts the servers, and writes the keys.
    pub(super) async fn build(options: &Options, setting: Setting) -> Result<Self> {
        let cluster_options = ClusterOptions {
            nodes: setting.nodes,
            network: setting.delay_ms.is_some(),
            args: options.server.clone(),
            dir: Some(options.dir.clone()),
            ..ClusterOptions::new(&options.kv)
        };
        let mut cluster = Cluster::prepare(&cluster_options.with(setting.server_args()))?;
        if let Some(ms) = setting.delay_ms {
            for id in cluster.ids() {
                cluster.network()?.delay(id, Duration::from_millis(ms));
            }
        }
        cluster.launch_all().await?;
        let stage = Self { cluster, kv: options.kv.clone(), setting, runs: 0 };
        stage.fill().await?;
        Ok(stage)
    }

    /// The load generator writes all keys before it reads: so it reads, for a moment, whatever is there.
    async fn fill(&self) -> Result<()> {
        let mut args = self.args("get", 1);
        args.extend(["--fill-batch", "128", "--serializable", "--duration", "0.2", "--warmup", "0"].map(str::to_owned));
        let args: Vec<_> = args.iter().map(|arg| &**arg).collect();
        let output = run(&self.kv, &args, &[], "", FILL_LIMIT).await?;
        if !output.status.success() {
            bail!("the keys could not be written: {}", String::from_utf8_lossy(&output.stderr));
        }
        self.cluster.converged().await?;
        Ok(())
    }

    fn args(&self, workload: &str, clients: u64) -> Vec<String> {
        let numbers =
            [("--clients", clients), ("--value-size", self.setting.value_size), ("--keys", self.setting.keys)];
        let mut args = vec!["bench".to_owned(), workload.to_owned(), "--json".into()];
        args.extend(["--endpoints".into(), self.cluster.servers().join(",")]);
        args.extend(numbers.into_iter().flat_map(|(name, number)| [name.to_owned(), number.to_string()]));
        args
    }

    /// Lets the load generator run, and looks at what that costs.
    pub(super) async fn run(&mut self, series: &Series, warmup: Duration, duration: Duration) -> Result<Ran> {
        let pids = self.pids()?;
        self.wait_until_idle(&pids).await;
        let setting = Setting { clients: series.clients.unwrap_or(self.setting.clients), ..self.setting };
        let mut args = self.args(series.workload, setting.clients);
        args.extend(["--duration".into(), duration.as_secs_f64().to_string()]);
        args.extend(["--warmup".into(), warmup.as_secs_f64().to_string()]);
        if series.workload != "put" {
            args.push("--no-fill".into());
        }
        self.runs += 1;
        let log = self.cluster.dir()?.join(format!("bench-{}.log", self.runs));
        let mut generator = Process::new("the load generator", &self.kv, args, log);
        generator.start()?;
        tokio::time::sleep(OPENING + warmup).await;
        let before = Spent::now(&pids, generator.pid());
        tokio::time::sleep(duration).await;
        let cores = Spent::now(&pids, generator.pid()).since(&before);
        let memory = memory(&pids);
        let status = generator.wait(RUN_SLACK).await?;
        let printed = generator.log();
        if let Some((id, status)) = self.cluster.ended()?.first() {
            bail!("n{id} ended with {status}");
        }
        let report =
            report(&printed).with_context(|| format!("the load generator printed:\n{}", tail(&printed, 40)))?;
        // That nothing was answered in time, it calls a failure; here it is an outcome.
        if !status.success() && report.throughput > 0.0 {
            bail!("the load generator ended with {status}; it printed:\n{}", tail(&printed, 40));
        }
        let Report { throughput, latency: [p50, p99, p999, max], kinds } = report;
        let errors = kinds.values().sum();
        let (servers, generator, others) = (cores.servers, cores.generator, cores.others);
        let measured = Measured { throughput, p50, p99, p999, max, errors, servers, generator, others, memory };
        Ok(Ran { setting, measured, kinds })
    }

    fn pids(&self) -> Result<Vec<u32>> {
        let pid = |id| self.cluster.process(id)?.pid().with_context(|| format!("n{id} does not run"));
        self.cluster.ids().into_iter().map(pid).collect()
    }

    async fn wait_until_idle(&self, pids: &[u32]) {
        let begun = Instant::now();
        while begun.elapsed() < IDLE_LIMIT {
            let before = Spent::now(pids, None);
            tokio::time::sleep(IDLE_FOR).await;
            // Where nothing is known of it, nothing is waited for.
            if Spent::now(pids, None).since(&before).servers.partial_cmp(&IDLE_CORES)
                != Some(std::cmp::Ordering::Greater)
            {
                return;
            }
        }
    }

    /// Ends the servers.
    pub(super) fn end(self) -> Result<()> {
        self.cluster.finish()
    }
}

/// A run.
pub(super) struct Ran {
    /// What it depended on, with the series' own number of clients.
    pub(super) setting: Setting,
    pub(super) measured: Measured,
    /// How many requests failed, by what they were told.
    pub(super) kinds: BTreeMap<String, u64>,
}

struct Report {
    throughput: f64,
    /// p50, p99, p99.9, and the longest, in milliseconds.
    latency: [f64; 4],
    kinds: BTreeMap<String, u64>,
}

/// What the load generator prints at the end.
fn report(printed: &str) -> Result<Report> {
    let start = printed.find("\n{").context("there is no JSON in it")?;
    // It may say something more below.
    let json = serde_json::Deserializer::from_str(&printed[start..]).into_iter::<Json>().next();
    let json = json.context("there is no JSON in it")??;
    let latency =
        ["p50", "p99", "p999", "max"].map(|name| json["latency_ms"]["all"][name].as_f64().unwrap_or(f64::NAN));
    let errors = json["errors"].as_object().context("no errors are named")?;
    Ok(Report {
        throughput: json["throughput"].as_f64().context("no throughput is named")?,
        latency,
        kinds: errors.iter().filter_map(|(kind, count)| Some((kind.clone(), count.as_u64()?))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_generators_report_is_read() {
        let printed = "--- the load generator: run 1: bench put\n{\n  \"throughput\": 31000.5, \"errors\": {\"timeout\": 3, \"other\": 4},\n\
                       \"latency_ms\": {\"all\": {\"p50\": 1.5, \"p99\": 4.0, \"p999\": 5.0, \"max\": 9.0}}}\nkv-example: it was not that good\n";
        let report = report(printed).unwrap();
        assert_eq!((report.throughput, report.latency), (31000.5, [1.5, 4.0, 5.0, 9.0]));
        assert_eq!(report.kinds, BTreeMap::from([("timeout".into(), 3), ("other".into(), 4)]));
    }

    #[test]
    fn what_is_no_report_is_refused() {
        for printed in ["", "--- run\nno connection", "--- run\n{\"throughput\": 1.0}", "--- run\n{\"errors\": {}}"] {
            assert!(report(printed).is_err(), "{printed:?}");
        }
    }
}
