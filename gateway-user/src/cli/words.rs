//! The grammar of the command line: words as in ip(8) become the long flags that clap reads.
//!
//! `gwctl r a 203.0.113.0/24 via pool nat` is `gwctl route add 203.0.113.0/24 --via="pool nat"`. The tree of
//! clap commands is the only place that knows which nouns, verbs and keywords there are.

use clap::{Arg, Command};

use super::{
    failure::{Failure, quoted},
    help,
};
use crate::model::error::closest;

/// Help heading of flags that are not keywords: they have no meaning for the gateway.
pub(super) const OPTIONS: &str = "Options";

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Words for clap, without the name of the program, and the names of the command.
    Run {
        /// Words for clap.
        words: Vec<String>,
        /// Noun and verb in full.
        path: Vec<String>,
    },
    /// The help of the command with these names.
    Help(Vec<String>),
}

/// Reads `words` (without the name of the program) by the commands of `root`.
pub(super) fn read(root: &Command, words: &[String]) -> Result<Line, Failure> {
    let mut reader = Reader { root, command: root, path: Vec::new(), out: Vec::new() };
    let mut rest = words;
    while reader.command.has_subcommands() {
        let Some((word, behind)) = rest.split_first() else {
            return reader.without_verb();
        };
        rest = behind;
        if is_help(word) {
            return Ok(Line::Help(reader.names()));
        }
        if word == "help" {
            let behind: Vec<String> = behind.iter().filter(|word| !word.starts_with('-')).cloned().collect();
            return reader.help(&behind);
        }
        if word.starts_with('-') {
            rest = reader.option(word, rest);
        } else {
            reader.descend(word)?;
        }
    }
    match reader.leaf(rest) {
        Ok(true) => Ok(Line::Run { path: reader.names(), words: reader.out }),
        Ok(false) => Ok(Line::Help(reader.names())),
        Err(LeafError::Stray(word)) => Err(reader.stray(&word)),
        Err(LeafError::Missing { argument, given }) => Err(reader.missing(argument, &given)),
    }
}

/// Finds the subcommand of `command` that `word` names or abbreviates.
pub(super) fn resolve<'a>(command: &'a Command, word: &str) -> Result<&'a Command, Vec<&'a str>> {
    if let Some(exact) = command.find_subcommand(word) {
        return Ok(exact);
    }
    let candidates: Vec<&Command> =
        visible(command).filter(|candidate| candidate.get_name().starts_with(word)).collect();
    match candidates.as_slice() {
        [only] => Ok(only),
        _ => Err(candidates.iter().map(|candidate| candidate.get_name()).collect()),
    }
}

/// The subcommands that users are told of.
pub(super) fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

/// The keywords of a verb, in the order they are declared.
pub(super) fn keywords(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| {
        argument.get_long().is_some()
            && !argument.is_global_set()
            && !matches!(argument.get_id().as_str(), "help" | "version")
            && argument.get_help_heading() != Some(OPTIONS)
    })
}

/// Why the words of a verb cannot be read.
#[derive(Debug)]
pub(super) enum LeafError<'a> {
    /// The words end before the value of the keyword does.
    Missing {
        /// The keyword.
        argument: &'a Arg,
        /// The words of its value that are there.
        given: Vec<String>,
    },
    /// The word is neither a subject nor a keyword.
    Stray(String),
}

/// A command line that is being read.
pub(super) struct Reader<'a> {
    pub(super) root: &'a Command,
    pub(super) command: &'a Command,
    pub(super) path: Vec<&'a str>,
    pub(super) out: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Goes to the subcommand that `word` names or abbreviates.
    pub(super) fn descend(&mut self, word: &str) -> Result<(), Failure> {
        match resolve(self.command, word) {
            Ok(command) => {
                self.command = command;
                self.path.push(command.get_name());
                self.out.push(command.get_name().to_owned());
                Ok(())
            }
            Err(candidates) => Err(self.unresolved(word, &candidates)),
        }
    }

    /// Reads the words of a verb. `false`: they ask for help.
    pub(super) fn leaf(&mut self, mut rest: &[String]) -> Result<bool, LeafError<'a>> {
        let subjects: Vec<&Arg> = self.command.get_positionals().collect();
        let mut subject = 0;
        while let Some((word, behind)) = rest.split_first() {
            rest = behind;
            let names_subject = subjects.get(subject).is_some_and(|argument| is_name(argument));
            if word == "--" {
                self.out.push(word.clone());
                self.out.extend_from_slice(rest);
                return Ok(true);
            } else if is_help(word) || (word == "help" && subject == 0 && !names_subject && rest.is_empty()) {
                return Ok(false);
            } else if let Some(keyword) = self.keyword_flag(word) {
                rest = self.value(keyword, rest)?;
            } else if word.starts_with('-') && word.len() > 1 {
                rest = self.option(word, rest);
            } else if names_subject {
                // A pool may well be called `address`.
                self.out.push(word.clone());
                subject += 1;
            } else if let Some(keyword) =
                keywords(self.command).find(|argument| argument.get_long() == Some(word.as_str()))
            {
                rest = self.value(keyword, rest)?;
            } else if let Some(argument) = subjects.get(subject) {
                self.out.push(word.clone());
                let many = argument.get_num_args().is_some_and(|count| count.max_values() > 1);
                subject += usize::from(!many);
            } else {
                return Err(LeafError::Stray(word.clone()));
            }
        }
        Ok(true)
    }

    /// Takes the value of `keyword` from `rest`.
    fn value<'w>(&mut self, keyword: &'a Arg, rest: &'w [String]) -> Result<&'w [String], LeafError<'a>> {
        let long = keyword.get_long().unwrap_or_default();
        if !keyword.get_action().takes_values() {
            self.out.push(format!("--{long}"));
            return Ok(rest);
        }
        let length = if is_target(keyword) || is_fail(keyword) { target_length(rest) } else { 1 };
        let Some((value, rest)) = rest.split_at_checked(length) else {
            return Err(LeafError::Missing { argument: keyword, given: rest.to_vec() });
        };
        self.out.push(format!("--{long}={}", value.join(" ")));
        Ok(rest)
    }

    /// The keyword that `word` is as a flag without its value: `--via`, but not `--via=direct`.
    fn keyword_flag(&self, word: &str) -> Option<&'a Arg> {
        let long = word.strip_prefix("--")?;
        keywords(self.command).find(|argument| argument.get_long() == Some(long))
    }

    /// Takes an option, and its value from `rest`.
    pub(super) fn option<'w>(&mut self, word: &str, rest: &'w [String]) -> &'w [String] {
        self.out.push(word.to_owned());
        let takes_value =
            |argument: &Arg| argument.get_action().takes_values() && !argument.is_require_equals_set();
        let is_it = |argument: &&Arg| match (word.strip_prefix("--"), word.strip_prefix('-')) {
            (Some(long), _) => argument.get_long() == Some(long),
            (None, short) => argument.get_short().map(String::from).as_deref() == short,
        };
        let argument = self.root.get_arguments().chain(self.command.get_arguments()).find(is_it);
        match (argument.is_some_and(takes_value), rest.split_first()) {
            (true, Some((value, rest))) => {
                self.out.push(value.clone());
                rest
            }
            _ => rest,
        }
    }

    /// `gwctl route` is `gwctl route show`, `gwctl stats` is all of them.
    fn without_verb(mut self) -> Result<Line, Failure> {
        let asks_version = self.out.iter().any(|word| word == "-V" || word == "--version");
        if asks_version || !self.command.is_subcommand_required_set() {
            return Ok(Line::Run { path: self.names(), words: self.out });
        }
        if self.command.find_subcommand("show").is_some() && !self.path.is_empty() {
            self.descend("show")?;
            return Ok(Line::Run { path: self.names(), words: self.out });
        }
        let what = if self.path.is_empty() { "a command" } else { "a verb" };
        Err(Failure::usage(format!("`{}` needs {what}", self.full_path())).hint(self.choices()))
    }

    fn help(mut self, behind: &[String]) -> Result<Line, Failure> {
        for word in behind {
            if self.command.has_subcommands() {
                self.descend(word)?;
            }
        }
        Ok(Line::Help(self.names()))
    }

    fn unresolved(&self, word: &str, candidates: &[&str]) -> Failure {
        if !candidates.is_empty() {
            return Failure::usage(format!("`{word}` is ambiguous"))
                .hint(format!("it may be {}", quoted(candidates, "or")));
        }
        let what = if self.path.is_empty() { "command" } else { "verb" };
        let names: Vec<&str> = visible(self.command).map(Command::get_name).collect();
        Failure::usage(format!("`{}` has no {what} `{word}`", self.full_path())).hint(
            closest(word, names.iter().copied())
                .map_or_else(|| self.choices(), |name| format!("did you mean `{name}`?")),
        )
    }

    fn stray(&self, word: &str) -> Failure {
        let names: Vec<&str> = keywords(self.command).filter_map(Arg::get_long).collect();
        let hint = closest(word, names.iter().copied()).map_or_else(
            || format!("usage: {}", help::usage(self.root, &self.names())),
            |name| format!("did you mean `{name}`?"),
        );
        Failure::usage(format!("`{}` has no keyword `{word}`", self.full_path())).hint(hint)
    }

    fn missing(&self, argument: &Arg, given: &[String]) -> Failure {
        let keyword = argument.get_long().unwrap_or_default();
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let needs = match given.as_slice() {
            [] => help::value(argument),
            ["gateway"] => "ADDR".to_owned(),
            ["gateway", ..] => "IF".to_owned(),
            _ => "NAME".to_owned(),
        };
        let words = [&[keyword], given.as_slice()].concat().join(" ");
        let failure = Failure::usage(format!("`{words}` needs {needs}"));
        if is_target(argument) {
            return failure.hint(format!("`{keyword}` takes {}", help::explanation(argument)));
        }
        failure.hint(format!("usage: {}", help::usage(self.root, &self.names())))
    }

    fn choices(&self) -> String {
        let names: Vec<&str> = visible(self.command).map(Command::get_name).collect();
        format!("{} has {}; `{0} --help` tells more", self.full_path(), names.join(", "))
    }

    fn full_path(&self) -> String {
        help::full_path(&self.names())
    }

    fn names(&self) -> Vec<String> {
        self.path.iter().map(|&name| name.to_owned()).collect()
    }
}

/// Words of a target at the start of `words`.
fn target_length(words: &[String]) -> usize {
    match words.first().map(String::as_str) {
        Some("gateway") if words.get(2).is_some_and(|word| word == "dev") => 4,
        Some("pool" | "proxy" | "gateway") => 2,
        // A word of its own, a whole target in one argument, or for the daemon to refuse.
        _ => 1,
    }
}

pub(super) fn is_target(argument: &Arg) -> bool {
    help::value(argument) == super::route::TARGET
}

fn is_fail(argument: &Arg) -> bool {
    help::value(argument) == super::proxy::FAIL
}

pub(super) fn is_name(argument: &Arg) -> bool {
    help::value(argument) == "NAME"
}

fn is_help(word: &str) -> bool {
    matches!(word, "-h" | "--help")
}
