//! Files that the command writes. Their paths are checked before the run. A file has its old contents until the new ones are
//! complete: they are written to a temporary file beside it, which then takes its name.

use crate::cli::say;
use crate::trouble::Trouble;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The destination of a report, whose path has been checked.
#[derive(Debug)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file, by its path on the command line.
    File(PathBuf),
}

impl Output {
    /// Checks that a file can be written at `path`; "-" is standard output. Changes nothing, and leaves no file behind.
    ///
    /// # Errors
    /// [`Trouble::Input`] if the file cannot be written.
    pub fn check(path: &Path) -> Result<Self, Trouble> {
        if is_standard(path) {
            return Ok(Self::Stdout);
        }
        let checked = match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            // A pipe is not opened: that would wait for its reader.
            Ok(metadata) if metadata.is_file() => File::options().write(true).open(path).map(drop),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match path.file_name() {
                Some(_) => tempfile::tempfile_in(folder(path)).map(drop),
                None => Err(error),
            },
            Err(error) => Err(error),
        };
        checked.map(|()| Self::File(path.into())).map_err(|error| cannot_write(path, &error))
    }

    /// Returns whether this is standard output.
    pub fn is_stdout(&self) -> bool {
        matches!(self, Self::Stdout)
    }

    /// Writes `text` and a line break in the place of the old contents. If this fails, a file keeps its old contents, unless
    /// no other file can be made in its folder.
    ///
    /// # Errors
    /// [`Trouble::Input`] if the text cannot be written.
    pub fn write(self, text: &str) -> Result<(), Trouble> {
        match self {
            Self::Stdout => say(text),
            Self::File(path) => replace(&path, text).map_err(|error| cannot_write(&path, &error)),
        }
    }
}

/// Checks that each of `outputs` is another file than the others and than the `inputs`, and that at most one output is
/// standard output. Each path has the name of its option.
///
/// # Errors
/// [`Trouble::Input`] names two that are the same.
pub fn all_different(outputs: &[(&str, &Path)], inputs: &[(&str, &Path)]) -> Result<(), Trouble> {
    let mut to_stdout = outputs.iter().filter(|(_, path)| is_standard(path)).map(|(option, _)| option);
    if let (Some(one), Some(other)) = (to_stdout.next(), to_stdout.next()) {
        return Err(Trouble::Input(format!(
            "{one} and {other} would both write to standard output: give one of them a file"
        )));
    }
    for (at, (option, path)) in outputs.iter().enumerate() {
        let later = outputs[at + 1..].iter().chain(inputs);
        if let Some((other, _)) = later.into_iter().find(|(_, other)| is_same(path, other)) {
            return Err(Trouble::Input(format!(
                "{option} {}: this is the file of {other}; give {option} another path",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Returns whether `path` means standard output, or standard input in the place of an input.
fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

fn is_same(a: &Path, b: &Path) -> bool {
    if is_standard(a) || is_standard(b) {
        return false;
    }
    match (fs::metadata(a), fs::metadata(b)) {
        // Two reports into /dev/null are no loss.
        (Ok(a), Ok(b)) => a.is_file() && is_same_file(&a, &b),
        (Err(_), Err(_)) => match (full(a), full(b)) {
            (Some(a), Some(b)) => a == b,
            _ => a == b,
        },
        _ => false,
    }
}

#[cfg(unix)]
fn is_same_file(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same_file(_: &Metadata, _: &Metadata) -> bool {
    false
}

/// Returns the path of a file that is not there yet, with its folder resolved.
fn full(path: &Path) -> Option<PathBuf> {
    Some(fs::canonicalize(folder(path)).ok()?.join(path.file_name()?))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn cannot_write(path: &Path, error: &io::Error) -> Trouble {
    Trouble::Input(format!("cannot write {}: {error}", path.display()))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // The file itself, and not a symbolic link to it, gets the new contents.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let old = fs::metadata(path).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        // A pipe or a device.
        return writeln!(File::options().write(true).open(path)?, "{text}");
    }
    let Ok(mut new) = new_file(folder(path), old.as_ref()) else {
        // The file may be written, but nothing else in its folder.
        return writeln!(File::create(path)?, "{text}");
    };
    writeln!(new, "{text}")?;
    new.persist(path).map(drop).map_err(|error| error.error)
}

/// Makes a temporary file with the rights that the file at its later name has, or would get.
fn new_file(folder: &Path, old: Option<&Metadata>) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let new = builder.prefix(".faultless-").tempfile_in(folder)?;
    if let Some(old) = old {
        fs::set_permissions(new.path(), old.permissions())?;
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_check_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("old");
        fs::write(&old, "old").unwrap();
        for path in [&old, &folder.path().join("new")] {
            assert!(matches!(Output::check(path), Ok(Output::File(_))));
        }
        assert_eq!(names(folder.path()), ["old"]);
        assert_eq!(fs::read_to_string(&old).unwrap(), "old");
        for path in [folder.path(), &folder.path().join("no/such"), Path::new("")] {
            assert!(matches!(Output::check(path), Err(Trouble::Input(_))), "{}", path.display());
        }
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_with_its_rights_and_its_links() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::write(&old, "a longer text than the new one").unwrap();
        #[cfg(unix)]
        let link = {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).unwrap();
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&old, &link).unwrap();
            link
        };
        #[cfg(not(unix))]
        let link = old.clone();
        Output::check(&link).unwrap().write("text").unwrap();
        Output::check(&new).unwrap().write("text").unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "text\n");
        assert_eq!(fs::read_to_string(&new).unwrap(), "text\n");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert_eq!(fs::metadata(&old).unwrap().permissions().mode() & 0o777, 0o640);
            assert_eq!(names(folder.path()), ["link", "new", "old"]);
        }
    }

    #[test]
    fn the_same_file_is_found_by_any_of_its_paths() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("old");
        fs::write(&old, "old").unwrap();
        let (again, new) = (folder.path().join("./old"), folder.path().join("new"));
        let new_again = folder.path().join(".").join("new");
        let (json, html): (&str, &str) = ("--json", "--html");
        let refused = |a: &Path, b: &Path| {
            all_different(&[(json, a), (html, b)], &[]).is_err()
                && all_different(&[(json, a)], &[(html, b)]).is_err()
        };
        assert!(refused(&old, &again) && refused(&new, &new_again));
        assert!(!refused(&old, &new) && !refused(Path::new("-"), &old));
        assert!(!refused(Path::new("/dev/null"), Path::new("/dev/null")));
    }
    #[test]
    fn only_one_output_is_standard_output() {
        let (standard, null) = (Path::new("-"), Path::new("/dev/null"));
        assert!(all_different(&[("--json", standard), ("--html", null)], &[("A", standard)]).is_ok());
        let error = all_different(&[("--json", standard), ("--html", null), ("--perfetto", standard)], &[]);
        assert!(error.unwrap_err().to_string().starts_with("--json and --perfetto would both write"));
    }
}
