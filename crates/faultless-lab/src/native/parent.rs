//! The parent's side of a round: it serves the file, starts the worker, and waits for the reply.

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

/// Interval between two checks for an interrupt or the end of the worker.
const LOOK: Duration = Duration::from_millis(20);
/// Time that a round may take in addition to its measurement and its last reads.
const GENEROUS: Duration = Duration::from_secs(60);
/// Time that a worker may take to reply after it was told to end, without its last reads.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Runs a round in a worker: this executable with the subcommand [`WORKER`].
///
/// # Errors
/// [`Trouble::Cannot`] if the kernel does not grant a needed feature. Otherwise the error of the scenario.
pub fn round(job: Job<'_>) -> Result<Measured, Trouble> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(WORKER);
    round_by(command, job)
}

/// Runs a round in a worker that `command` starts. The command calls [`super::worker`].
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
    // Moved after `_limit`, so that the worker ends before its cgroup is removed.
    let mut worker = worker;
    let heard = worker.converse(socket, &request, job.turn, last_reads(job.scenario, job.turn.settings));
    let failed = worker.server.as_ref().and_then(Server::failed);
    let status = worker.end();
    let result = match heard? {
        Heard::Reply(reply) => (*reply).into(),
        // The worker is killed by now. Nothing was measured, as if the round had not begun.
        Heard::TooLate => Ok(Measured::default()),
        Heard::Nothing => Err(match status {
            Ok(status) => died(status, job.memory_limit),
            Err(error) => Trouble::Wrong(format!("cannot wait for the worker: {error}")),
        }),
    };
    // The thread that waited for that read received SIGBUS, or EFAULT from a system call.
    result.map_err(|trouble| match failed {
        Some(error) => Trouble::Input(format!("cannot read the file: {error}")),
        None => trouble,
    })
}

/// Returns the time until every thread has the read that it waits for.
fn last_reads(scenario: &str, settings: &Settings) -> Duration {
    let threads = scenarios::find(scenario).map_or(1, |scenario| settings.threads(scenario));
    let before = settings.queue_depth.map_or(0, |depth| threads / depth.get());
    settings.io_latency.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1))
}

/// Answer of a worker.
enum Heard {
    Reply(Box<Reply>),
    /// The worker ended without a reply.
    Nothing,
    /// The worker was told to end, but did not.
    TooLate,
}

/// Returns the error for a worker that ended without a reply.
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

/// Running worker with its file server. It is ended when this is dropped.
struct Worker {
    pid: Pid,
    /// `None` after it was waited for.
    child: Option<Child>,
    server: Option<Server>,
}

impl Worker {
    fn start(mut command: Command, server: Option<Server>) -> Result<(Self, UnixStream), Trouble> {
        let refused = |error: io::Error| Trouble::Cannot(format!("cannot start a worker: {error}"));
        let (ours, theirs) = UnixStream::pair().map_err(refused)?;
        // The worker has its own process group. So Ctrl-C reaches only the parent, and a kill of the group reaches the
        // worker's children too.
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).process_group(0);
        let child = command.spawn().map_err(refused)?;
        let pid = Pid::from_child(&child);
        Ok((Self { pid, child: Some(child), server }, ours))
    }

    /// Sends the request and waits for the reply.
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
                    // A child of fork may still hold the other end of the socket, so the end of the stream is no sign.
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

    /// Returns whether the worker has ended. Does not collect it, so that its process id stays the id of its group.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid), options), Ok(None))
    }

    /// Ends the worker, its children, and the server.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { return Err(ErrorKind::NotFound.into()) };
        // A worker that has ended keeps its status.
        let _ = kill_process_group(self.pid, Signal::KILL);
        // A thread that waits for a read cannot be killed before the answer. The drop of the server answers.
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
