//! What every command works with: the daemon, the output, and the wishes of the user.

use std::io::{self, Write};

use hyper::{Method, body::Bytes};
use serde::{Serialize, de::DeserializeOwned};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Failure;
use crate::{
    api::{
        self, Client,
        error::exit,
        types::{Change, List},
    },
    render::{Columns, Grid, Paint},
};

/// The streams of the process, and which of them are terminals.
pub struct Terminal<'a> {
    /// Standard output: data.
    pub out: &'a mut dyn Write,
    /// Standard error: messages.
    pub err: &'a mut dyn Write,
    /// Whether somebody looks at standard output.
    pub out_is_terminal: bool,
    /// Whether somebody looks at standard error.
    pub err_is_terminal: bool,
    /// Whether somebody can answer a question.
    pub in_is_terminal: bool,
}

/// What a command works with.
#[expect(clippy::struct_excessive_bools, reason = "each of them is a flag of the command line")]
pub(super) struct Context<'a, 'b> {
    pub(super) client: Client,
    /// Colours of standard output.
    pub(super) paint: Paint,
    pub(super) json: bool,
    pub(super) header: bool,
    pub(super) quiet: bool,
    pub(super) verbose: bool,
    pub(super) yes: bool,
    pub(super) terminal: &'a mut Terminal<'b>,
}

impl Context<'_, '_> {
    /// Reads from the daemon.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<T, Failure> {
        self.client.get(path, query).await.map_err(|error| Failure::of_call(error, self.client.socket()))
    }

    /// Reads from the daemon for as long as it has something to tell.
    pub(super) async fn open(&self, path: &str, query: &impl Serialize) -> Result<Stream, Failure> {
        let answer = self.client.open(path, query).await;
        let answer = answer.map_err(|error| Failure::of_call(error, self.client.socket()))?;
        let ended = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        let [interrupt, terminate] = ended;
        Ok(Stream { answer, interrupt: interrupt?, terminate: terminate?, is_enough: false })
    }

    /// Makes a change with a body, and says so if that is wanted.
    pub(super) async fn change(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(), Failure> {
        let change = self.client.send(method, path, body).await;
        self.changed(&change.map_err(|error| Failure::of_call(error, self.client.socket()))?)
    }

    /// Deletes, and says so if that is wanted.
    pub(super) async fn delete(&mut self, path: &str, query: &impl Serialize) -> Result<(), Failure> {
        let change = self.client.delete(path, query).await;
        self.changed(&change.map_err(|error| Failure::of_call(error, self.client.socket()))?)
    }

    /// Reads a list and shows it.
    pub(super) async fn show<T>(&mut self, path: &str, query: &impl Serialize) -> Result<(), Failure>
    where
        T: Columns + DeserializeOwned + Serialize,
    {
        let list: List<T> = self.get(path, query).await?;
        self.print(&list)
    }

    /// Shows a list as a table or as JSON.
    pub(super) fn print<T: Columns + Serialize>(&mut self, list: &List<T>) -> Result<(), Failure> {
        if self.json {
            return self.print_json(list);
        }
        self.print_grid(&Grid::new(&list.items))
    }

    /// Shows a table.
    pub(super) fn print_grid(&mut self, grid: &Grid) -> Result<(), Failure> {
        // Headings above nothing would only confuse a program that reads the output.
        let header = self.header && (self.terminal.out_is_terminal || !grid.is_empty());
        self.print_text(&grid.print(header, self.paint))
    }

    /// Shows `value` as JSON.
    pub(super) fn print_json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer_pretty(&mut *self.terminal.out, value).map_err(io::Error::from)?;
        Ok(writeln!(self.terminal.out)?)
    }

    /// Shows `value` as one line of JSON, at once.
    pub(super) fn print_json_line(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut *self.terminal.out, value).map_err(io::Error::from)?;
        writeln!(self.terminal.out)?;
        Ok(self.terminal.out.flush()?)
    }

    /// Shows tables, one below the other.
    pub(super) fn print_grids(&mut self, grids: &[Grid]) -> Result<(), Failure> {
        for (number, grid) in grids.iter().enumerate() {
            if number > 0 {
                self.print_text("\n")?;
            }
            self.print_grid(grid)?;
        }
        Ok(())
    }

    /// Shows tables in the place of the last ones, at once; below them where that cannot be.
    pub(super) fn redraw(&mut self, grids: &[Grid]) -> Result<(), Failure> {
        /// ECMA-48: cursor to the upper left corner, then erase to the end of the display.
        const CLEAR: &str = "\x1b[H\x1b[J";
        let tables: Vec<_> = grids.iter().map(|grid| grid.print(self.header, self.paint)).collect();
        let text = tables.join("\n");
        if self.terminal.out_is_terminal {
            write!(self.terminal.out, "{CLEAR}{text}")?;
        } else {
            writeln!(self.terminal.out, "{text}")?;
        }
        Ok(self.terminal.out.flush()?)
    }

    /// Shows text as it is.
    pub(super) fn print_text(&mut self, text: &str) -> Result<(), Failure> {
        Ok(self.terminal.out.write_all(text.as_bytes())?)
    }

    /// Tells the user something that is not data.
    pub(super) fn note(&mut self, text: &str) {
        if !self.quiet {
            // Output comes before what is said about it. A message that cannot be shown is no reason to fail.
            let _ = self.terminal.out.flush();
            let _ = writeln!(self.terminal.err, "{text}");
        }
    }

    /// Asks before a change that removes much. Without a terminal nobody is there to ask.
    pub(super) fn confirm(&mut self, question: &str) -> Result<(), Failure> {
        if self.yes || !self.terminal.in_is_terminal || !self.terminal.err_is_terminal {
            return Ok(());
        }
        write!(self.terminal.err, "{question} [y/N] ")?;
        self.terminal.err.flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            Ok(())
        } else {
            Err(Failure::new(exit::NOT_PERMITTED, "not confirmed, nothing was changed")
                .hint("answer y, or give --yes"))
        }
    }

    /// Says what came of a change, if that is wanted.
    pub(super) fn changed(&mut self, change: &Change) -> Result<(), Failure> {
        for warning in &change.warnings {
            self.note(&format!("warning: {warning}"));
        }
        if !self.verbose {
            return Ok(());
        }
        if self.json {
            return self.print_json(change);
        }
        self.note(&if change.changed {
            format!("revision {} is in force", change.revision)
        } else {
            format!("nothing to change, revision {} is in force", change.revision)
        });
        Ok(())
    }
}

/// What the daemon has to tell, until the user has seen enough.
pub(super) struct Stream {
    answer: api::Stream,
    interrupt: Signal,
    terminate: Signal,
    is_enough: bool,
}

impl Stream {
    /// What comes next; `None`: the daemon has ended it, or the user.
    pub(super) async fn next(&mut self, context: &Context<'_, '_>) -> Result<Option<Bytes>, Failure> {
        tokio::select! {
            piece = self.answer.next() => {
                return piece.map_err(|error| Failure::of_call(error, context.client.socket()));
            }
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.is_enough = true;
        Ok(None)
    }

    /// Ends where nothing comes next: well if the user has ended it, or `is_whole` says that it has come to its end.
    pub(super) fn finish(self, is_whole: bool) -> Result<(), Failure> {
        // A daemon that stops ends its streams in good order.
        if self.is_enough || is_whole { Ok(()) } else { Err(Failure::gone("gatewayd has stopped")) }
    }
}

pub(super) mod color {
    //! When to use colour.

    use std::env;

    use clap::ValueEnum;

    /// `--color`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
    pub(in super::super) enum When {
        /// On a terminal, unless `NO_COLOR` is set.
        #[default]
        Auto,
        /// In a file and in a pipe, too.
        Always,
        /// Not at all.
        Never,
    }

    impl When {
        /// Whether a stream that is a terminal or not has colours.
        pub(in super::super) fn resolve(self, terminal: bool) -> bool {
            // https://no-color.org: set and not empty.
            let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
            match self {
                Self::Auto => {
                    terminal && !set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
                }
                Self::Always => true,
                Self::Never => false,
            }
        }

        /// What a command line says that could not be read as a whole.
        pub(in super::super) fn of_words(words: &[String]) -> Self {
            let at = words.iter().position(|word| word == "--color").map(|at| at + 1);
            let value = at
                .and_then(|at| words.get(at).map(String::as_str))
                .or_else(|| words.iter().find_map(|word| word.strip_prefix("--color=")));
            value.and_then(|value| Self::from_str(value, false).ok()).unwrap_or_default()
        }
    }
}
