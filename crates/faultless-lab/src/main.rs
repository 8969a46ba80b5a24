//! The command `faultless`; all of it is in the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    faultless_lab::cli::main()
}
