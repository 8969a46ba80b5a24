//! The command `faultless-bench`; all of it is in the library.
#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    faultless_bench::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("faultless-bench: it measures threads by what Linux says of them, and runs on Linux only");
    std::process::ExitCode::from(2)
}
