//! Files that are generated from the command line's own definition: shell completions and man pages.

use crate::cli::say;
use crate::trouble::Trouble;
use clap::{Command, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;
use std::path::{Path, PathBuf};
use std::{fs, io};

const COMPLETIONS: &str = "\
Examples:
  source <(faultless generate completions bash)      in ~/.bashrc
  faultless generate completions zsh > _faultless    in a folder of $fpath
  faultless generate completions fish | source       in ~/.config/fish/config.fish";

const MAN: &str = "\
Examples:
  faultless generate man ~/.local/share/man/man1      then: man faultless-compare";

/// Arguments of `faultless generate`.
#[derive(Debug, Subcommand)]
pub enum Generate {
    /// Write the completions of a shell to standard output.
    #[command(after_help = COMPLETIONS)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write a man page for each command into a folder.
    #[command(after_help = MAN)]
    Man {
        /// The folder; it is made if it is missing
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

impl Generate {
    /// Writes the files of `command`. Hidden subcommands are omitted.
    ///
    /// # Errors
    /// [`Trouble::Input`] if a file or standard output cannot be written.
    pub fn run(&self, command: &Command) -> Result<(), Trouble> {
        let mut command = visible(command);
        match self {
            Self::Completions { shell } => say(completions(*shell, &mut command).trim_end()),
            Self::Man { folder } => {
                fs::create_dir_all(folder).and_then(|()| man_pages(command, folder)).map_err(|error| {
                    Trouble::Input(format!("cannot write man pages to {}: {error}", folder.display()))
                })
            }
        }
    }
}

/// Writes a man page for `command` and for each of its subcommands.
fn man_pages(command: Command, folder: &Path) -> io::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = command.get_subcommands().cloned().collect::<Vec<_>>();
    pages.push(command);
    for page in pages {
        let page = Man::new(page);
        let mut text = Vec::new();
        page.render(&mut text)?;
        // Hyphens and wide blanks would change the examples of commands: they are switched off before the first section.
        let text = String::from_utf8_lossy(&text).replacen(".SH NAME", ".nh\n.ad l\n.SH NAME", 1);
        fs::write(folder.join(page.get_filename()), text)?;
    }
    Ok(())
}

fn completions(shell: Shell, command: &mut Command) -> String {
    let mut bytes = Vec::new();
    let name = command.get_name().to_string();
    clap_complete::generate(shell, command, name, &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns `command` without its hidden subcommands. Completions would offer them.
fn visible(command: &Command) -> Command {
    let shown = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    let visible = Command::new("faultless").version(env!("CARGO_PKG_VERSION")).subcommand_required(true);
    let mut visible = visible.subcommands(shown.cloned());
    if let Some(about) = command.get_about() {
        visible = visible.about(about.clone());
    }
    match command.get_after_help() {
        Some(text) => visible.after_help(text.clone()),
        None => visible,
    }
}
