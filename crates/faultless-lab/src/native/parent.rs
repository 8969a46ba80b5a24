//! The parent's side of a round: serves the file, starts the worker, waits for what it says.

use super::cgroup::Limit;
use super::fuse::Server;
use super::job::{Job, Source, WORKER};
use super::wire::{Reply, Request, Served};
use super::{name_of, trace};
use crate::measure::Measured;
use crate::scenarios::{self, Settings, Turn};
use crate::trouble::Trouble;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long nobody looks whether the worker is to end, or has.
const LOOK: Duration = Duration::from_millis(20);
/// What a round may take besides what it measures and what its last reads take.
const GENEROUS: Duration = Duration::from_secs(60);
/// How long a worker that was told to end may take to say what it has measured, its last reads not counted.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Runs a round in a worker: this executable, called with [`WORKER`].
///
/// # Errors
/// [`Trouble::Cannot`] where the kernel does not grant what it takes; what the scenario says.
pub fn round(job: Job<'_>) -> Result<Measured, Trouble> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(WORKER);
    round_by(command, job)
}

/// The same, by a command that calls [`super::worker`].
///
/// # Errors
/// As [`round`].
pub fn round_by(command: Command, job: Job<'_>) -> Result<Measured, Trouble> {
    let mut served = None;
    let server = match job.file {
        Some(Source { store, length, contents }) => {
            let server = Server::new(store, length)?;
            served = Some(Served { path: server.path(), length, contents });
            Some(server)
        }
        None => None,
    };
    let request = Request {
        scenario: job.scenario.into(),
        settings: job.turn.settings.clone(),
        length: job.turn.length,
        seed: job.turn.seed,
        file: served,
        tracepoint: trace::find(),
        variant: job.variant,
    };
    let (worker, socket) = Worker::start(command, server)?;
    let _limit = job.memory_limit.map(|bytes| Limit::new(bytes, worker.pid)).transpose()?;
    // Moved, so that it is ended before its cgroup is removed.
    let mut worker = worker;
    let heard = worker.converse(socket, &request, job.turn, last_reads(job.scenario, job.turn.settings));
    let failed = worker.server.as_ref().and_then(Server::failed);
    let status = worker.end();
    let result = match heard? {
        Heard::Reply(reply) => (*reply).into(),
        // It is killed by now. Nothing was measured, as if the round had never begun.
        Heard::TooLate => Ok(Measured::default()),
        Heard::Nothing => Err(match status {
            Ok(status) => died(status, job.memory_limit),
            Err(error) => Trouble::Wrong(format!("cannot wait for the worker: {error}")),
        }),
    };
    // Whoever waited for that read got SIGBUS, or EFAULT from a system call.
    result.map_err(|trouble| match failed {
        Some(error) => Trouble::Input(format!("cannot read the file: {error}")),
        None => trouble,
    })
}

/// How long it takes until every thread has the read that it waits for.
fn last_reads(scenario: &str, settings: &Settings) -> Duration {
    let threads = scenarios::find(scenario).map_or(1, |scenario| settings.threads(scenario));
    let before = settings.queue_depth.map_or(0, |depth| threads / depth.get());
    settings.io_latency.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1))
}

/// What came from a worker.
enum Heard {
    Reply(Box<Reply>),
    /// It ended without a reply.
    Nothing,
    /// It was told to end, and has not.
    TooLate,
}

/// What it means that a worker ended without a reply.
fn died(status: ExitStatus, memory_limit: Option<u64>) -> Trouble {
    match (status.signal(), memory_limit) {
        (Some(libc::SIGKILL), Some(limit)) => Trouble::Input(format!(
            "the worker was killed: {} MiB of memory were too little for it; raise --memory",
            limit >> 20
        )),
        (Some(signal), _) => Trouble::Wrong(format!("the worker was ended by {}", name_of(signal))),
        (None, _) => Trouble::Wrong(format!("the worker ended without a word: {status}")),
    }
}

/// A worker and what it lives on. Ended when this is dropped.
struct Worker {
    pid: Pid,
    /// `None` once it was waited for.
    child: Option<Child>,
    server: Option<Server>,
}

impl Worker {
    fn start(mut command: Command, server: Option<Server>) -> Result<(Self, UnixStream), Trouble> {
        let refused = |error: io::Error| Trouble::Cannot(format!("cannot start a worker: {error}"));
        let (ours, theirs) = UnixStream::pair().map_err(refused)?;
        // A group of its own: Ctrl-C is for the parent, and children of fork are found with it.
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).process_group(0);
        let child = command.spawn().map_err(refused)?;
        let pid = Pid::from_child(&child);
        Ok((Self { pid, child: Some(child), server }, ours))
    }

    /// Hands over the request and waits for the reply.
    fn converse(
        &self,
        mut socket: UnixStream,
        request: &Request,
        turn: &Turn<'_>,
        last_reads: Duration,
    ) -> Result<Heard, Trouble> {
        let broken = |error: io::Error| Trouble::Wrong(format!("cannot talk to the worker: {error}"));
        let mut line = serde_json::to_vec(request).map_err(|error| broken(error.into()))?;
        line.push(b'\n');
        match socket.write_all(&line) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Heard::Nothing),
            written => written.map_err(broken)?,
        }
        socket.set_read_timeout(Some(LOOK)).map_err(broken)?;
        let patience = GENEROUS + last_reads;
        let mut deadline = Instant::now() + turn.length + patience;
        let (mut told, mut ended) = (false, false);
        let (mut said, mut part) = (Vec::new(), [0; 16 << 10]);
        loop {
            match socket.read(&mut part) {
                Ok(0) => return Ok(Heard::Nothing),
                Ok(n) => said.extend_from_slice(&part[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if ended {
                        return Ok(Heard::Nothing);
                    }
                    // A child of fork may still have the other end of the socket: its end is no sign.
                    ended = self.has_ended();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Heard::Nothing),
                Err(error) => return Err(broken(error)),
            }
            if said.ends_with(b"\n") {
                let reply = serde_json::from_slice(&said);
                return reply
                    .map(|reply| Heard::Reply(Box::new(reply)))
                    .map_err(|error| broken(error.into()));
            }
            if !told && turn.interrupted.load(Ordering::Relaxed) {
                told = true;
                deadline = deadline.min(Instant::now() + LAST_WORDS + last_reads);
                socket.shutdown(Shutdown::Write).map_err(broken)?;
            }
            if Instant::now() >= deadline {
                if told {
                    return Ok(Heard::TooLate);
                }
                return Err(Trouble::Wrong(format!(
                    "the worker has not ended {} s after the round",
                    patience.as_secs()
                )));
            }
        }
    }

    /// Whether it has ended. It is not taken away yet: its number stays its group's.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid), options), Ok(None))
    }

    /// Ends it, its children, and the server.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { return Err(ErrorKind::NotFound.into()) };
        // One that has ended keeps the status it has.
        let _ = kill_process_group(self.pid, Signal::KILL);
        // A thread that waits for a read cannot be killed until it is answered; this answers.
        self.server = None;
        child.wait()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    #[test]
    fn patience_grows_with_the_queue_at_the_device() {
        let settings = |threads, depth| Settings {
            threads: Some(threads),
            queue_depth: NonZeroUsize::new(depth),
            io_latency: Duration::from_secs(10),
            ..Settings::default()
        };
        let seconds = |threads, depth| last_reads("fork-during-io", &settings(threads, depth)).as_secs();
        assert_eq!((seconds(64, 0), seconds(64, 1), seconds(64, 16)), (10, 650, 50));
    }
}
