//! The command `faultless`. All its code is in the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    faultless_lab::cli::main()
}
