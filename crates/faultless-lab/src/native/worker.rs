//! The worker's side of a round: one round on the kernel, in a process of its own.

use super::machine::{Mapped, NativeMachine};
use super::wire::{Reply, Request};
use crate::machine::Machine;
use crate::measure::Measured;
use crate::scenarios::Turn;
use crate::trouble::Trouble;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs one round. Takes the request from the socket on standard input, runs the round by `play`, and replies. Ends
/// early when the parent closes its end, and is killed when the parent dies.
pub fn worker(
    play: impl FnOnce(&Request, &NativeMachine, &Turn<'_>) -> Result<Measured, Trouble>,
) -> ExitCode {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    // This covers a parent that dies without ending the worker. A parent that is already gone has closed the socket.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let (mut socket, request) = match receive() {
        Ok(received) => received,
        Err(error) => {
            eprintln!("faultless: a round is started by compare, not by hand: {error}");
            return ExitCode::from(2);
        }
    };
    let watch = socket.try_clone().and_then(|mut socket| {
        let watch = move || {
            // The parent sends nothing more, so this returns at the end of the stream.
            let _ = socket.read(&mut [0]);
            INTERRUPTED.store(true, Ordering::Relaxed);
        };
        std::thread::Builder::new().name("watch".into()).spawn(watch)
    });
    let result = match watch {
        Ok(_) => round(&request, &INTERRUPTED, play),
        Err(error) => Err(Trouble::Cannot(format!("cannot start a thread: {error}"))),
    };
    let mut line = serde_json::to_vec(&Reply::from(result)).unwrap_or_default();
    line.push(b'\n');
    match socket.write_all(&line) {
        Ok(()) => ExitCode::SUCCESS,
        // The parent is gone, so nobody can receive the error.
        Err(_) => ExitCode::FAILURE,
    }
}

fn receive() -> io::Result<(UnixStream, Request)> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut line = String::new();
    BufReader::new(&socket).read_line(&mut line)?;
    Ok((socket, serde_json::from_str(&line)?))
}

fn round(
    request: &Request,
    interrupted: &AtomicBool,
    play: impl FnOnce(&Request, &NativeMachine, &Turn<'_>) -> Result<Measured, Trouble>,
) -> Result<Measured, Trouble> {
    // Each thread that faults has descriptors of its own.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let mapped = request.file.as_ref().map(|served| {
        let file = File::open(&served.path)
            .map_err(|error| Trouble::Cannot(format!("cannot open the file that FUSE serves: {error}")))?;
        Ok(Mapped { file, length: served.length })
    });
    let machine = NativeMachine::new(mapped.transpose()?, request.tracepoint.clone(), request.variant)?;
    let turn = Turn {
        settings: &request.settings,
        length: request.length,
        seed: request.seed,
        interrupted,
        recorder: None,
    };
    let mut measured = play(request, &machine, &turn)?;
    machine.annotate(&mut measured);
    machine.finish()?;
    Ok(measured)
}
