//! Memory limit for the worker: a memory cgroup of its own, version 2 or 1.

use crate::trouble::Trouble;
use rustix::process::Pid;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for a group to become empty after its last process was killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Cgroup with a limit. It is removed when this is dropped.
#[derive(Debug)]
pub struct Limit {
    folder: PathBuf,
}

/// Folder in which groups can be made, and the name of the limit file there.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    folder: PathBuf,
    limit: &'static str,
}

impl Limit {
    /// Limits the memory of the process and its children, cached file pages included, to `bytes`.
    ///
    /// # Errors
    /// [`Trouble::Cannot`] if this process may not make a cgroup.
    pub fn new(bytes: u64, process: Pid) -> Result<Self, Trouble> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let place = place(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"), |folder| {
            fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default()
        });
        let cannot =
            |what: &str| Trouble::Cannot(format!("no memory limit for the kernel's processes: {what}"));
        let Place { folder, limit } = place.ok_or_else(|| cannot("no memory cgroup is mounted"))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = folder.join(format!("faultless-{}-{number}", std::process::id()));
        let made = fs::create_dir(&folder).and_then(|()| {
            let group = Self { folder: folder.clone() };
            fs::write(folder.join(limit), bytes.to_string())?;
            fs::write(folder.join("cgroup.procs"), process.as_raw_nonzero().to_string())?;
            Ok(group)
        });
        made.map_err(|error: io::Error| cannot(&format!("{}: {error}; needs root", folder.display())))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // The folder is busy until the last process is gone.
        while fs::remove_dir(&self.folder).is_err() && self.folder.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Returns the place for a new group. With version 2 it is below the root, where processes and groups may lie side by
/// side. With version 1 it is below this process's own group.
fn place(mounts: &str, groups: &str, controllers_below: impl Fn(&Path) -> String) -> Option<Place> {
    let mut version_1 = None;
    for line in mounts.lines() {
        let (Some((_, after)), mut fields) = (line.split_once(" - "), line.split(' ')) else { continue };
        let (Some(root), Some(folder)) = (fields.nth(3), fields.next()) else { continue };
        let mut kind = after.split(' ');
        match (kind.next(), kind.nth(1)) {
            (Some("cgroup2"), _) => {
                let folder = PathBuf::from(folder);
                if controllers_below(&folder).split_whitespace().any(|name| name == "memory") {
                    return Some(Place { folder, limit: "memory.max" });
                }
            }
            (Some("cgroup"), Some(options)) if options.split(',').any(|option| option == "memory") => {
                let own = groups.lines().find_map(|line| {
                    let (names, path) = line.split_once(':')?.1.split_once(':')?;
                    names.split(',').any(|name| name == "memory").then_some(path)
                });
                // The mount may show only a part of the hierarchy.
                let own = Path::new(own.unwrap_or("/"));
                let below = own.strip_prefix(root).unwrap_or(Path::new(""));
                let folder = Path::new(folder).join(below);
                version_1 = Some(Place { folder, limit: "memory.limit_in_bytes" });
            }
            _ => {}
        }
    }
    version_1
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION_1: &str = "\
24 1 0:22 / /proc rw - proc proc rw
35 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
36 31 0:31 / /sys/fs/cgroup/memory rw,relatime shared:1 - cgroup cgroup rw,memory
37 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn version_1_is_found_below_the_own_group() {
        let groups = "5:devices:/\n4:memory:/a/b\n0::/";
        let found = place(VERSION_1, groups, |_| "hugetlb".into()).unwrap();
        assert_eq!(found.folder, Path::new("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(found.limit, "memory.limit_in_bytes");
    }

    #[test]
    fn version_2_comes_first_where_it_has_memory() {
        let found = place(VERSION_1, "0::/", |_| "cpu memory pids".into()).unwrap();
        let expected = Place { folder: "/sys/fs/cgroup/unified".into(), limit: "memory.max" };
        assert_eq!(found, expected);
        assert_eq!(place("24 1 0:22 / /proc rw - proc proc rw", "0::/", |_| String::new()), None);
    }
}
