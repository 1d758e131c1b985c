//! A command line's own words as mdoc(7).

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};

/// The date on pages that are made from nothing but a command line. Fixed, so
/// that a page changes only with its words.
const DATE: &str = "November 23, 2026";

/// A page for a command that needs no more words than `--help` has.
pub(crate) fn plain_page(command: &Command, options: &str) -> String {
    let name = command.get_name();
    let about = command.get_about().map(ToString::to_string);
    let about = about.unwrap_or_default();
    let about = about.trim_end_matches('.');
    let mut page = format!(
        ".Dd {DATE}\n.Dt {} 8\n.Os\n.Sh NAME\n.Nm {name}\n.Nd {}\n.Sh SYNOPSIS\n.Nm\n.Op Ar option ...\n.Sh DESCRIPTION\n",
        name.to_uppercase(),
        text(about).trim_end()
    );
    let long = command.get_long_about().map(ToString::to_string);
    // The first paragraph says what NAME says.
    let paragraphs = long.unwrap_or_default();
    let paragraphs = paragraphs.split("\n\n").skip(1).map(text);
    page.push_str(&paragraphs.collect::<Vec<_>>().join(".Pp\n"));
    page.push_str(".Sh OPTIONS\n");
    page.push_str(options);
    page.push_str(".Sh SEE ALSO\n.Xr sheepfs 8\n");
    page
}

/// What `--help` says of each option, under the headings it has there.
pub(crate) fn options(command: &Command) -> String {
    let mut command = command.clone();
    command.build();
    let mut sections: Vec<(Option<&str>, Vec<&Arg>)> = Vec::new();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let heading = arg.get_help_heading();
        match sections.iter_mut().find(|(known, _)| *known == heading) {
            Some((_, args)) => args.push(arg),
            None => sections.push((heading, vec![arg])),
        }
    }
    // What belongs under no heading comes last: help and version.
    sections.sort_by_key(|(heading, args)| heading.is_none() && !args[0].is_positional());
    let mut page = String::new();
    for (heading, args) in sections {
        if let Some(heading) = heading {
            page.push_str(&format!(".Ss {heading}\n"));
        }
        page.push_str(".Bl -tag -width Ds\n");
        for arg in args {
            page.push_str(&item(arg));
        }
        page.push_str(".El\n");
    }
    page
}

fn item(arg: &Arg) -> String {
    let mut item = format!(".It {}\n", term(arg));
    let help = arg.get_long_help().or(arg.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let paragraphs: Vec<_> = help.split("\n\n").map(text).collect();
    item.push_str(&paragraphs.join(".Pp\n"));
    let values = arg.get_possible_values();
    let values: Vec<_> = values
        .iter()
        .filter_map(|value| Some((value.get_name(), value.get_help()?.to_string())))
        .filter(|_| arg.get_action().takes_values())
        .collect();
    if !values.is_empty() {
        item.push_str(".Bl -tag -width Ds\n");
        for (name, help) in values {
            write!(item, ".It Cm {}\n{}", escaped(name), text(&help))
                .expect("writing to a String cannot fail");
        }
        item.push_str(".El\n");
    }
    item
}

/// The option as it is typed.
fn term(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let names: Vec<_> = names.iter().map(|name| escaped(name)).collect();
    let value = names.join(" ");
    if arg.is_positional() {
        return format!("Ar {value}");
    }
    let short = arg.get_short().map(|short| format!("Fl {short}"));
    let long = arg.get_long().map(|long| format!("Fl Fl {long}"));
    let flags: Vec<_> = short.into_iter().chain(long).collect();
    let flags = flags.join(" , ");
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let optional = arg
        .get_num_args()
        .is_some_and(|range| range.min_values() == 0);
    match (takes_value, optional) {
        (false, _) => flags,
        (true, false) => format!("{flags} Ar {value}"),
        (true, true) => format!("{flags} Ns Op = Ns Ar {value}"),
    }
}

/// A paragraph, a line for each sentence.
fn text(paragraph: &str) -> String {
    let words = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut sentence_end = words.replace(". ", ".\n");
    let last_is_open = !sentence_end.ends_with(['.', '?', '!', ':']);
    if last_is_open {
        sentence_end.push('.');
    }
    let lines = sentence_end.lines().map(|line| {
        let line = code(line);
        // A line that begins so would be taken for a request.
        let guard = if line.starts_with(['.', '\'']) {
            "\\&"
        } else {
            ""
        };
        format!("{guard}{line}\n")
    });
    lines.collect()
}

/// Sets what stands between backquotes, and options, in bold.
fn code(line: &str) -> String {
    let mut parts = line.split('`');
    let mut set = parts.next().map(options_in).unwrap_or_default();
    for (part, is_code) in parts.zip([true, false].into_iter().cycle()) {
        if is_code {
            write!(set, "\\fB{}\\fP", escaped(part)).expect("writing to a String cannot fail");
        } else {
            set.push_str(&options_in(part));
        }
    }
    set
}

fn options_in(part: &str) -> String {
    let words = part.split(' ').map(|word| {
        let (flag, rest) =
            word.split_at(word.find([',', '.', ';', ':', ')']).unwrap_or(word.len()));
        if flag.len() > 1 && flag.starts_with('-') {
            format!("\\fB{}\\fP{}", escaped(flag), escaped(rest))
        } else {
            word.replace('\\', "\\e")
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Escapes literal text; hyphens become minus signs.
fn escaped(plain: &str) -> String {
    plain.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn man_text_has_line_per_sentence() {
        assert_eq!(
            text("Use --lock off. See `dog -a`\nfor more"),
            "Use \\fB\\-\\-lock\\fP off.\nSee \\fBdog \\-a\\fP for more.\n"
        );
        assert_eq!(text(".hidden files"), "\\&.hidden files.\n");
    }

    #[test]
    fn man_options_stand_under_headings() {
        let command = Command::new("x")
            .disable_help_flag(true)
            .arg(Arg::new("place").value_name("PLACE").help("Where"))
            .arg(
                Arg::new("all")
                    .short('a')
                    .long("all")
                    .action(ArgAction::SetTrue)
                    .help("Everything")
                    .help_heading("What"),
            )
            .arg(
                Arg::new("kept")
                    .long("kept")
                    .num_args(0..=1)
                    .value_name("DIR")
                    .help("Kept")
                    .help_heading("What"),
            );
        assert_eq!(
            options(&command),
            ".Bl -tag -width Ds\n.It Ar PLACE\nWhere.\n.El\n\
             .Ss What\n.Bl -tag -width Ds\n.It Fl a , Fl Fl all\nEverything.\n\
             .It Fl Fl kept Ns Op = Ns Ar DIR\nKept.\n.El\n"
        );
    }
}
