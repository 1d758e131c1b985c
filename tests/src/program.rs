//! Running a program to its end, with its command line and output in the error text.

use std::io::{ErrorKind, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::wait::wait_until;

/// Longest run of a program that [`run`] and [`output`] put up with.
const DEFAULT_LIMIT: Duration = Duration::from_secs(300);

/// Output and status of a program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error, as text.
    pub stderr: String,
}

/// Runs `command` to its successful end and returns its standard output.
///
/// # Errors
/// When the program is missing, takes longer than five minutes, or does not
/// exit with 0; the text has the command line and what it printed.
pub fn run(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    run_within(DEFAULT_LIMIT, command)
}

/// As [`run`], with another time limit.
///
/// # Errors
/// As [`run`].
pub fn run_within(limit: Duration, command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let finished = output(limit, command)?;
    if !finished.status.success() {
        bail!(
            "{command:?} failed: {}\n{}{}",
            finished.status,
            String::from_utf8_lossy(&finished.stdout),
            finished.stderr
        );
    }
    Ok(finished.stdout)
}

/// Runs `command` to its end, however it ends, without standard input.
///
/// # Errors
/// When the program is missing or runs longer than `limit`; then it is killed.
pub fn output(limit: Duration, command: &mut Command) -> anyhow::Result<Finished> {
    let mut child = spawn(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let mut status = None;
    let ended = wait_until(&format!("{command:?} ends"), limit, || {
        status = child.try_wait()?;
        Ok(status.is_some())
    });
    let Some(status) = status else {
        child.kill().context("killing it")?;
        return Err(ended.err().context("a child without a status")?);
    };
    Ok(Finished {
        status,
        stdout: collect(stdout)?,
        stderr: String::from_utf8_lossy(&collect(stderr)?).into_owned(),
    })
}

/// Starts `command`; a missing program is an error that names it.
pub(crate) fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    command.spawn().map_err(|error| {
        let program = command.get_program().to_string_lossy().into_owned();
        if error.kind() == ErrorKind::NotFound {
            anyhow::anyhow!("this test needs the program `{program}`, which is not installed")
        } else {
            anyhow::Error::new(error).context(format!("cannot start {program}"))
        }
    })
}

/// Reads a pipe to its end in a thread, so that the writer never stalls.
fn drain(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<std::io::Result<Vec<u8>>> {
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut text)?;
        }
        Ok(text)
    })
}

fn collect(reader: JoinHandle<std::io::Result<Vec<u8>>>) -> anyhow::Result<Vec<u8>> {
    match reader.join() {
        Ok(text) => text.context("reading what a program printed"),
        Err(_) => bail!("the thread that reads a program's output panicked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_failure_is_reported_with_output() {
        let error = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]))
            .expect_err("exit 3 is a failure");
        let text = format!("{error:#}");
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("out\nerr\n"), "{text}");
    }

    #[test]
    fn command_error_names_missing_program() {
        let error = run(&mut Command::new("/no/such/program")).expect_err("it does not exist");
        assert!(format!("{error:#}").contains("needs the program `/no/such/program`"));
    }

    #[test]
    fn command_timeout_kills_process() {
        let error = output(Duration::from_millis(50), Command::new("sleep").arg("1000"))
            .expect_err("it outlives the limit");
        assert!(format!("{error:#}").contains("gave up after"));
    }
}
