//! One server process: started, hurt, and never left behind.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;

const POLL: Duration = Duration::from_millis(2);

/// A program with its arguments, which may run, and run again. Its stderr is kept in a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    /// A program that runs this one, with its own arguments; none at first.
    wrapper: Vec<String>,
    /// Environment variables of its own; none at first.
    env: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
    runs: u32,
}

impl Process {
    /// A process that does not run yet. Its standard output and error go to the file `log`.
    #[must_use]
    pub fn new(name: &str, program: &Path, args: Vec<String>, log: PathBuf) -> Self {
        let (wrapper, env) = (Vec::new(), Vec::new());
        Self { name: name.into(), program: program.into(), args, wrapper, env, log, child: None, runs: 0 }
    }

    /// Starts it.
    ///
    /// # Errors
    /// It runs already, or can't be started.
    pub fn start(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("{} runs already", self.name);
        }
        self.runs += 1;
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        writeln!(log, "--- {}: run {}: {}", self.name, self.runs, self.args.join(" "))?;
        let mut command = match self.wrapper.split_first() {
            Some((wrapper, args)) => {
                let mut command = clean_command(Path::new(wrapper));
                command.args(args).arg(&self.program);
                command
            }
            None => clean_command(&self.program),
        };
        command.envs(self.env.iter().cloned());
        // A group of its own: Ctrl-C is for whoever started it.
        command.process_group(0);
        // The open stdin is a watchdog for servers that were told to mind it: they end with the test, however it ends.
        command.args(&self.args).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("can't start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Changes the arguments of the next start.
    pub fn set_args(&mut self, args: Vec<String>) {
        self.args = args;
    }

    /// Runs it, from the next start on, by a program that becomes it in the end (as `unshare` does). Empty: by nothing else.
    pub fn set_wrapper(&mut self, wrapper: Vec<String>) {
        self.wrapper = wrapper;
    }

    /// Gives it these environment variables, and no others of ours, from the next start on.
    pub fn set_env(&mut self, env: &[(&str, String)]) {
        self.env = env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    }

    /// How it ended, if it has, since it was started last.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Its arguments.
    #[must_use]
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it was started, and its end was not seen yet.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.as_ref().and_then(pid_of).ok_or_else(|| anyhow!("{} does not run", self.name))?;
        kill_process(pid, signal).with_context(|| format!("can't signal {}", self.name))
    }

    /// `kill -9`, and waits until the system has buried it.
    ///
    /// # Errors
    /// It does not run, or has ended by itself.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().ok_or_else(|| anyhow!("{} does not run", self.name))?;
        if let Some(status) = child.try_wait()? {
            bail!("{} had ended by itself, with {status}", self.name);
        }
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = self.child.as_mut().ok_or_else(|| anyhow!("{} does not run", self.name))?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs after {limit:?}", self.name);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Everything that it has printed so far, in all its runs.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until it prints this.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn wait_for_log(&self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.log().contains(text) {
            if Instant::now() > deadline {
                bail!("{} did not print {text:?} within {limit:?}; it printed:\n{}", self.name, self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// A command that nothing in this environment can configure by accident.
fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RAFTKV_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG").env("NO_COLOR", "1").env("RUST_BACKTRACE", "1");
    command
}

/// Runs a program to its end, with this as its standard input, and returns what it printed.
///
/// # Errors
/// It can't be started, or did not end in time; it is killed then.
pub async fn run(program: &Path, args: &[&str], env: &[(&str, &str)], input: &str, limit: Duration) -> Result<Output> {
    let mut command = clean_command(program);
    command.args(args).envs(env.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().with_context(|| format!("can't start {}", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that has ended already reads nothing.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(output) => Ok(output?),
        Err(_) => bail!("{} {} still runs after {limit:?}", program.display(), args.join(" ")),
    }
}

/// The last lines of a log, for a person who looks for the reason of a failure.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    let skipped = if from > 0 { format!("[{from} earlier lines]\n") } else { String::new() };
    format!("{skipped}{}\n", all[from..].join("\n"))
}

/// Writes a line to the terminal, past the test runner's capture: a measured figure, or why a test did not run.
pub fn notice(text: &str) {
    let line = format!("{text}\n");
    // One write, so that lines of parallel tests stay whole.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Holds back all other holders, in this process and in others: tests that would starve each other run one by one.
///
/// # Errors
/// The test's own file can't be locked.
pub async fn exclusive() -> Result<File> {
    // The executable is the one file that all of them share, whichever runner started them.
    let file = File::open(std::env::current_exe()?)?;
    let locked = tokio::task::spawn_blocking(move || {
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map(|()| file)
    });
    Ok(locked.await??)
}
