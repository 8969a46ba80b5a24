//! The parent's end of the line to an oracle.

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

/// An oracle that says nothing for so long hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How oracles are made.
pub type Commands<'a> = &'a dyn Fn() -> Command;

/// This executable, as an oracle.
pub fn own_command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(ORACLE);
    command
}

/// A running oracle.
pub struct Oracle {
    /// Until it has been waited for.
    child: Option<Child>,
    /// Requests go out by a thread, so that nobody waits for the other to read.
    requests: Sender<Vec<u8>>,
    answers: BufReader<UnixStream>,
    line: Vec<u8>,
    patience: Duration,
}

impl Oracle {
    /// A new one, which hangs if it says nothing for so long.
    ///
    /// # Errors
    /// [`Trouble::Cannot`].
    pub fn start(commands: Commands<'_>, patience: Duration) -> Result<Self, Trouble> {
        let refused =
            |error: io::Error| Trouble::Cannot(format!("cannot start a process to check against: {error}"));
        let (ours, theirs) = UnixStream::pair().map_err(refused)?;
        let mut command = commands();
        // A group of its own: Ctrl-C is for the parent, and children of fork are found with it.
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
        // It has the other end of the socket, and is to be the only one.
        drop(command);
        let answers = BufReader::with_capacity(64 << 10, ours);
        let mut oracle = Self { child: Some(child), requests, answers, line: Vec::new(), patience };
        match oracle.answer() {
            Ok(answer) if answer == READY => Ok(oracle),
            Ok(_) => Err(Trouble::Cannot("the process to check against is none of ours".into())),
            Err(lost) => Err(Trouble::Cannot(format!("cannot start a process to check against: {lost}"))),
        }
    }

    /// Asks it for an episode; the answers come in the order of the requests.
    pub fn ask(&self, request: &Request) {
        let mut line = serde_json::to_vec(request).unwrap_or_default();
        line.push(b'\n');
        // If nobody sends it, no answer will come either.
        let _ = self.requests.send(line);
    }

    /// The next answer, a line of JSON.
    ///
    /// # Errors
    /// What has become of the oracle.
    pub fn answer(&mut self) -> Result<&[u8], String> {
        self.line.clear();
        match self.answers.read_until(b'\n', &mut self.line) {
            Ok(_) if self.line.ends_with(b"\n") => Ok(&self.line[..self.line.len() - 1]),
            Ok(_) => Err(self.end()),
            // It has ended with a request unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(self.end()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let _ = self.end();
                Err(format!("the process has said nothing for {} s: it hangs", self.patience.as_secs_f32()))
            }
            Err(error) => Err(format!("cannot hear the process: {error}")),
        }
    }

    /// Ends it and its children, and says how it had ended.
    fn end(&mut self) -> String {
        let Some(mut child) = self.child.take() else { return "the process has ended".into() };
        // If it has closed its end, what it dies of it has died of already, or is about to.
        std::thread::sleep(Duration::from_millis(20));
        kill(&child);
        match child.wait() {
            Ok(status) => match status.signal() {
                Some(signal) => format!("the process was ended by {}", name_of(signal)),
                None => format!("the process ended without a word: {status}"),
            },
            Err(error) => format!("the process is lost: {error}"),
        }
    }
}

/// Ends an oracle that was not waited for, and its children.
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
