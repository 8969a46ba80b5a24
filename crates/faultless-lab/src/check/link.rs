//! The parent's end of the connection to an oracle.

use super::oracle::{ORACLE, READY, Request};
use crate::native::name_of;
use crate::trouble::Trouble;
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// Longest wait for an answer. An oracle that is silent for longer is considered to hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Function that returns the command of a new oracle.
pub type Commands<'a> = &'a dyn Fn() -> Command;

/// Returns the command that runs this executable as an oracle.
pub fn own_command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(ORACLE);
    command
}

/// Running oracle.
pub struct Oracle {
    /// `None` after it was waited for.
    child: Option<Child>,
    /// Queue of requests. A thread sends them, so that neither side blocks while the other one writes.
    requests: Sender<Vec<u8>>,
    answers: BufReader<UnixStream>,
    line: Vec<u8>,
    patience: Duration,
}

impl Oracle {
    /// Starts an oracle. It is considered to hang if it is silent for longer than `patience`.
    ///
    /// # Errors
    /// [`Trouble::Cannot`] if the process cannot be started.
    pub fn start(commands: Commands<'_>, patience: Duration) -> Result<Self, Trouble> {
        let refused =
            |error: io::Error| Trouble::Cannot(format!("cannot start a process to check against: {error}"));
        let (ours, theirs) = UnixStream::pair().map_err(refused)?;
        let mut command = commands();
        // The oracle has its own process group. So Ctrl-C reaches only the parent, and a kill of the group reaches the
        // oracle's children too.
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).process_group(0);
        let mut out = ours.try_clone().map_err(refused)?;
        ours.set_read_timeout(Some(patience)).map_err(refused)?;
        let (requests, queue) = channel::<Vec<u8>>();
        let send = move || {
            while let Ok(request) = queue.recv() {
                if out.write_all(&request).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("requests".into()).spawn(send).map_err(refused)?;
        let child = command.spawn().map_err(refused)?;
        // The command also holds the child's end of the socket. The oracle is to be its only holder.
        drop(command);
        let answers = BufReader::with_capacity(64 << 10, ours);
        let mut oracle = Self { child: Some(child), requests, answers, line: Vec::new(), patience };
        match oracle.answer() {
            Ok(answer) if answer == READY => Ok(oracle),
            Ok(_) => Err(Trouble::Cannot("the process to check against is not an oracle".into())),
            Err(lost) => Err(Trouble::Cannot(format!("cannot start a process to check against: {lost}"))),
        }
    }

    /// Sends a request for an episode. The answers come in the order of the requests.
    pub fn ask(&self, request: &Request) {
        let mut line = serde_json::to_vec(request).unwrap_or_default();
        line.push(b'\n');
        // If the thread that sends is gone, the wait for the answer fails too.
        let _ = self.requests.send(line);
    }

    /// Returns the next answer, a line of JSON.
    ///
    /// # Errors
    /// The reason why the oracle does not answer.
    pub fn answer(&mut self) -> Result<&[u8], String> {
        self.line.clear();
        match self.answers.read_until(b'\n', &mut self.line) {
            Ok(_) if self.line.ends_with(b"\n") => Ok(&self.line[..self.line.len() - 1]),
            Ok(_) => Err(self.end()),
            // The oracle has ended without reading a request.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(self.end()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let _ = self.end();
                Err(format!("the process has not answered for {} s: it hangs", self.patience.as_secs_f32()))
            }
            Err(error) => Err(format!("cannot read from the process: {error}")),
        }
    }

    /// Ends the oracle and its children. Returns a description of its exit.
    fn end(&mut self) -> String {
        let Some(mut child) = self.child.take() else { return "the process has ended".into() };
        // If the oracle has closed its end, it is dying. The pause lets it die of its own cause before the kill.
        std::thread::sleep(Duration::from_millis(20));
        kill(&child);
        match child.wait() {
            Ok(status) => match status.signal() {
                Some(signal) => format!("the process was ended by {}", name_of(signal)),
                None => format!("the process ended without an answer: {status}"),
            },
            Err(error) => format!("the process is lost: {error}"),
        }
    }
}

/// Kills an oracle that was not waited for, and its children.
fn kill(child: &Child) {
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill(&child);
            let _ = child.wait();
        }
    }
}
