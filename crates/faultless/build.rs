//! `FAULTLESS_MUTANTS=1` makes a build that plants published bugs (see `src/mutants.rs`). A build without debug assertions
//! refuses it.

fn main() {
    println!("cargo:rerun-if-env-changed=FAULTLESS_MUTANTS");
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("FAULTLESS_MUTANTS").is_some_and(|value| value == "1") {
        println!("cargo:rustc-cfg=mutants");
    }
}
