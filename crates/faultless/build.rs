//! `FAULTLESS_MUTANT=name` plants one published bug (see `CONTRIBUTING.md`, "Mutants"). A build without
//! debug assertions refuses it: `lib.rs` has the check.

fn main() {
    println!("cargo:rerun-if-env-changed=FAULTLESS_MUTANT");
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(name) = std::env::var("FAULTLESS_MUTANT")
        && !name.is_empty()
    {
        println!("cargo:rustc-cfg=mutant");
        println!("cargo:rustc-cfg=mutant=\"{name}\"");
    }
}
