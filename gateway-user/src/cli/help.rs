//! The text of `--help`: examples first, then the words.

use std::fmt::Write;

use clap::{Arg, Command};

use super::words::{self, OPTIONS};
use crate::render::{Paint, Tone};

/// The help of the command with the names `path`.
pub(super) fn help(root: &Command, path: &[String], paint: Paint) -> String {
    let command = find(root, path);
    let mut text = String::new();
    if let Some(about) = command.get_about() {
        let _ = writeln!(text, "{about}");
    }
    if let Some(examples) = command.get_after_help() {
        let _ = writeln!(text, "\n{}", paint.text(Tone::Heading, "Examples"));
        for example in examples.to_string().lines() {
            let _ = writeln!(text, "  {}", example.trim());
        }
    }
    let _ = writeln!(text, "\n{}\n  {}", paint.text(Tone::Heading, "Usage"), usage(root, path));
    let commands: Vec<(String, String)> =
        words::visible(command).map(|command| (command.get_name().to_owned(), about(command))).collect();
    list(&mut text, if path.is_empty() { "Commands" } else { "Verbs" }, &commands, paint);
    let subjects: Vec<_> = command
        .get_positionals()
        .map(|argument| (value(argument), explanation(argument)))
        .chain(words::keywords(command).map(|argument| (keyword(argument), explanation(argument))))
        .collect();
    list(&mut text, "Words", &subjects, paint);
    let options: Vec<_> = command
        .get_arguments()
        .filter(|argument| argument.get_help_heading() == Some(OPTIONS))
        .map(|argument| (flag(argument), explanation(argument)))
        .collect();
    list(&mut text, "Options", &options, paint);
    if path.is_empty() {
        let global: Vec<_> = root
            .get_arguments()
            .filter(|argument| argument.is_global_set() && !argument.is_positional())
            .map(|argument| (flag(argument), explanation(argument)))
            .collect();
        list(&mut text, "Global options", &global, paint);
        text.push_str(
            "\nNouns and verbs may be abbreviated while unambiguous. Every keyword is also a long flag:\n\
             `via pool nat` is `--via \"pool nat\"`. `gwctl help NOUN [VERB]` tells more.\n",
        );
    }
    text
}

/// One line that shows the words of the command with the names `path`.
pub(super) fn usage(root: &Command, path: &[String]) -> String {
    let command = find(root, path);
    let mut usage = full_path(path);
    if path.is_empty() {
        usage.push_str(" [GLOBAL] NOUN VERB [SUBJECT] [KEYWORD VALUE]...");
        return usage;
    }
    if command.has_subcommands() {
        let names: Vec<&str> = words::visible(command).map(Command::get_name).collect();
        let _ = write!(usage, " {} ...", names.join("|"));
        return usage;
    }
    let mut add = |text: String, required: bool| {
        let _ = if required { write!(usage, " {text}") } else { write!(usage, " [{text}]") };
    };
    for argument in command.get_positionals() {
        add(value(argument), argument.is_required_set());
    }
    for argument in words::keywords(command) {
        add(keyword(argument), argument.is_required_set());
    }
    for argument in command.get_arguments() {
        if argument.get_help_heading() == Some(OPTIONS) {
            add(flag(argument), argument.is_required_set());
        }
    }
    usage
}

/// `gwctl` and the names behind it.
pub(super) fn full_path(path: &[String]) -> String {
    path.iter().fold("gwctl".to_owned(), |text, name| text + " " + name)
}

/// What the value of `argument` is called: `PREFIX`, `tcp|udp|icmp`.
pub(super) fn value(argument: &Arg) -> String {
    argument.get_value_names().and_then(<[_]>::first).map(ToString::to_string).unwrap_or_default()
}

/// The command with the names `path`.
pub(super) fn find<'a>(root: &'a Command, path: &[String]) -> &'a Command {
    path.iter().fold(root, |command, name| command.find_subcommand(name).unwrap_or(command))
}

fn keyword(argument: &Arg) -> String {
    let long = argument.get_long().unwrap_or_default();
    if argument.get_action().takes_values() { format!("{long} {}", value(argument)) } else { long.to_owned() }
}

fn flag(argument: &Arg) -> String {
    let mut text = String::new();
    if let Some(short) = argument.get_short() {
        let _ = write!(text, "-{short}, ");
    }
    let _ = write!(text, "--{}", argument.get_long().unwrap_or_default());
    if argument.get_action().takes_values() {
        let value = value(argument);
        let _ = if argument.is_require_equals_set() {
            write!(text, "[={value}]")
        } else {
            write!(text, " {value}")
        };
    }
    text
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

/// What `argument` is for.
pub(super) fn explanation(argument: &Arg) -> String {
    argument.get_help().map(ToString::to_string).unwrap_or_default()
}

fn list(text: &mut String, heading: &str, entries: &[(String, String)], paint: Paint) {
    /// Names longer than this have their explanation on the next line.
    const WIDEST: usize = 24;
    if entries.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{}", paint.text(Tone::Heading, heading));
    let width =
        entries.iter().map(|(name, _)| name.len()).filter(|&width| width <= WIDEST).max().unwrap_or(0);
    for (name, explanation) in entries {
        if name.len() > width {
            let _ = writeln!(text, "  {name}\n  {:width$}  {explanation}", "");
        } else {
            let _ = writeln!(text, "  {name:width$}  {explanation}");
        }
    }
}
