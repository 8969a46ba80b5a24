//! Runs a test's body in a process of its own, so that a body that hangs fails the test and does not stop the others.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const CHILD: &str = "FAULTLESS_LINUX_CHILD";

/// The time limit of a body, far above its need. It only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `body` in a process that runs the test `name` of this program only. Fails if that process fails or does not end.
pub fn ends(name: &str, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let program = std::env::current_exe().expect("this test's program");
    let mut child = Command::new(program)
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .spawn()
        .expect("a child process");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child process") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{name} hangs");
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{name}: {status}");
}

/// Prints to the terminal the reason for which a test does nothing. The test harness would capture `eprintln!`.
pub fn skipped(why: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
