//! The command `faultless-bench`; all of it is in the library.
#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    faultless_bench::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("faultless-bench: this program runs on Linux only, since it uses Linux's figures of threads");
    std::process::ExitCode::from(2)
}
