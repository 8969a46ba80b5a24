//! Maps a file, changes the bytes in memory, and takes a snapshot. Needs userfaultfd.

use faultless_linux::{Region, RegionError};

fn run() -> Result<(), RegionError> {
    let source = std::fs::File::open("Cargo.toml").expect("run it in the workspace's folder");
    // Ordinary memory: a page is read when it is first touched, and stores do not reach the file.
    let mut text = Region::file(source)?;
    println!("{:?}", String::from_utf8_lossy(&text[..11]));

    // The same bytes at other addresses. The side that writes first gets a copy of the page.
    let before = text.snapshot()?;
    text[..11].make_ascii_uppercase();
    println!("{:?}, was {:?}", String::from_utf8_lossy(&text[..11]), String::from_utf8_lossy(&before[..11]));

    // Dropped pages show the file's bytes again.
    text.discard(..)?;
    println!("{:?}", String::from_utf8_lossy(&text[..11]));
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(2);
    }
}
