//! Processor time and memory, as Linux tells in `/proc`. Elsewhere nothing is known.

use std::time::Instant;

/// Processor time that was spent up to a moment, in ticks of the system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spent {
    at: Instant,
    servers: Option<u64>,
    generator: Option<u64>,
    machine: Option<u64>,
}

/// How many cores were busy between two moments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cores {
    pub(super) servers: f64,
    pub(super) generator: f64,
    pub(super) others: f64,
}

impl Spent {
    /// Up to now: by the servers; by the load generator with this process, which delays what nodes say; and by everybody.
    pub(super) fn now(servers: &[u32], generator: Option<u32>) -> Self {
        Self {
            at: Instant::now(),
            servers: servers.iter().map(|pid| ticks_of(*pid)).sum(),
            generator: generator.into_iter().chain([std::process::id()]).map(ticks_of).sum(),
            machine: read("/proc/stat").as_deref().and_then(machine),
        }
    }

    /// How many cores were busy since then.
    pub(super) fn since(&self, earlier: &Self) -> Cores {
        let seconds = self.at.duration_since(earlier.at).as_secs_f64();
        let ticks = seconds * rustix::param::clock_ticks_per_second() as f64;
        let busy = |now: Option<u64>, then: Option<u64>| match (now, then) {
            (Some(now), Some(then)) => now.saturating_sub(then) as f64 / ticks,
            _ => f64::NAN,
        };
        let servers = busy(self.servers, earlier.servers);
        let generator = busy(self.generator, earlier.generator);
        let others = (busy(self.machine, earlier.machine) - servers - generator).max(0.0);
        Cores { servers, generator, others }
    }
}

/// How much of these processes is in memory: the largest of them, in MiB.
pub(super) fn memory(pids: &[u32]) -> f64 {
    let of = |pid: &u32| resident_kib(&read(&format!("/proc/{pid}/status"))?);
    pids.iter().filter_map(of).max().map_or(f64::NAN, |kib| kib as f64 / 1024.0)
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn ticks_of(pid: u32) -> Option<u64> {
    ticks(&read(&format!("/proc/{pid}/stat"))?)
}

/// `pid (name) state …`, and the name may hold anything. The 14th and the 15th field are what was spent outside of the system and in it.
fn ticks(stat: &str) -> Option<u64> {
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// `cpu user nice system idle iowait irq softirq steal …`: all but the two in which nothing was done.
fn machine(stat: &str) -> Option<u64> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let numbers = numbers.take(8).map(|text| text.parse::<u64>().ok()).collect::<Option<Vec<_>>>()?;
    Some(numbers.iter().enumerate().filter(|(n, _)| !matches!(n, 3 | 4)).map(|(_, ticks)| ticks).sum())
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_tells_is_read() {
        let stat = "12 (a ) b) S 1 1 1 0 -1 4194304 5 0 0 0 700 30 9 9 20 0 8 0";
        assert_eq!(ticks(stat), Some(730));
        assert_eq!(machine("cpu  100 1 20 5000 60 3 4 5 7 0\ncpu0 1 2 3"), Some(133));
        assert_eq!(resident_kib("Name:\tx\nVmRSS:\t  2048 kB\n"), Some(2048));
        assert!(ticks("nothing").is_none() && machine("").is_none() && resident_kib("").is_none());
    }

    #[test]
    fn a_process_that_works_keeps_a_core_busy() {
        if read("/proc/stat").is_none() {
            return;
        }
        let own = std::process::id();
        let before = Spent::now(&[own], None);
        let mut sum = 0u64;
        while before.at.elapsed().as_millis() < 300 {
            sum = std::hint::black_box(sum.wrapping_mul(3) + 1);
        }
        let cores = Spent::now(&[own], None).since(&before);
        // A machine with much else to do gives it less than all of one.
        assert!(cores.servers > 0.01 && cores.generator > 0.01, "{cores:?}");
        assert!(memory(&[own]) > 1.0);
        assert!(memory(&[]).is_nan());
    }
}
