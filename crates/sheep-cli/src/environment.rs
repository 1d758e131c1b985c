//! Options from environment variables.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use crate::usage_error::UsageError;

/// Prefix of variables that set an option.
pub const PREFIX: &str = "SHEEPFS_";

/// Converts the environment to an equivalent command line of `command`.
///
/// # Errors
/// If a switch is neither 1 nor 0.
pub fn argv_from_env(
    command: &clap::Command,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<OsString>, UsageError> {
    let mut words = vec![OsString::from(command.get_name())];
    for argument in command.get_arguments() {
        let Some(long) = argument.get_long().filter(|_| !argument.is_hide_set()) else {
            continue;
        };
        let variable = format!("{PREFIX}{}", long.replace('-', "_").to_ascii_uppercase());
        let Some(value) = environment(&variable).filter(|value| !value.is_empty()) else {
            continue;
        };
        let switched = switch(&value);
        let takes_value = argument.get_action().takes_values();
        let switch_possible = !takes_value || long == "embedded";
        match switched {
            Some(true) if switch_possible => words.push(format!("--{long}").into()),
            Some(false) if switch_possible => {}
            _ if !takes_value => {
                return Err(UsageError(format!(
                    "{variable} is '{}': a switch is 1 or 0",
                    value.to_string_lossy()
                )));
            }
            _ if long == "attach" => {
                words.extend(blank_separated(&value).map(|name| word(long, name)));
            }
            _ => words.push(word(long, &value)),
        }
    }
    Ok(words)
}

fn switch(value: &OsStr) -> Option<bool> {
    match value.to_str()?.to_ascii_lowercase().as_str() {
        "1" | "yes" | "true" | "on" => Some(true),
        "0" | "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

fn word(long: &str, value: &OsStr) -> OsString {
    let mut word = OsString::from(format!("--{long}="));
    word.push(value);
    word
}

fn blank_separated(value: &OsStr) -> impl Iterator<Item = &OsStr> {
    value
        .as_bytes()
        .split(u8::is_ascii_whitespace)
        .filter(|name| !name.is_empty())
        .map(OsStr::from_bytes)
}
