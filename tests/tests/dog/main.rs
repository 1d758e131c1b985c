//! The same `dog` commands on a real sheep and on `sheep-embedded`. Output and exit status
//! must be equal, except for times, ports, sizes of disks, counters, and the differences
//! that are listed with a reason.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tests::{
    DOG_VARIABLE, EmbeddedSheep, Mounted, RealCluster, RealSheep, SHEEP_BINARY_VARIABLE, output,
};

mod commands;

use commands::{
    ATTRIBUTES, BACKUPS, DELETIONS, DIFFERENT, DIFFERENT_FORMAT, Different, FAMILIES, FORMATS,
    LOCKED, NODE, UNFORMATTED, VDIS,
};

/// Longest run of one command.
const LIMIT: Duration = Duration::from_secs(60);

/// A server, and a directory for its commands.
struct Subject<'a> {
    address: &'a str,
    directory: &'a Path,
}

/// The result of a command in a comparable form.
#[derive(PartialEq, Eq)]
struct Seen {
    exit: Option<i32>,
    out: String,
    err: String,
}

impl Subject<'_> {
    fn run(&self, dog: &Path, line: &str) -> anyhow::Result<Seen> {
        let (line, target) = line
            .split_once(" > ")
            .map_or((line, None), |(a, b)| (a, Some(b)));
        let (line, input) = line.split_once(" < ").unwrap_or((line, ""));
        let input = match input.strip_prefix('@') {
            Some(file) => self.directory.join(file),
            None => {
                let file = self.directory.join("input");
                fs::write(&file, content(input)?)?;
                file
            }
        };
        let (host, port) = self.address.split_once(':').context("HOST:PORT")?;
        let directory = self.directory.to_str().context("a path of text")?;
        let mut command = Command::new("sh");
        // The standard input of the shell is not ours to choose.
        command.args(["-c", r#"input=$1; shift; exec "$@" <"$input""#, "sh"]);
        command.arg(input).arg(dog);
        for word in line.split(' ') {
            let word = word.replace('~', " ").replace("{dir}", directory);
            command.arg(word.replace("{empty}", ""));
        }
        let finished = output(LIMIT, command.args(["-a", host, "-p", port]))?;
        if let Some(target) = target {
            fs::write(self.directory.join(target), &finished.stdout)?;
        }
        let comparable = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let text = text.replace(port, "PORT").replace(directory, "DIRECTORY");
            masked(line, &text)
        };
        Ok(Seen {
            exit: finished.status.code(),
            out: comparable(&finished.stdout),
            err: comparable(finished.stderr.as_bytes()),
        })
    }
}

/// The standard input that a command asks for.
fn content(input: &str) -> anyhow::Result<Vec<u8>> {
    Ok(match input.split_once('*') {
        Some((text, count)) => text.repeat(count.parse()?).into_bytes(),
        None => input.replace('~', " ").into_bytes(),
    })
}

/// Hides times, and for reports about disks and counters all numbers.
fn masked(line: &str, text: &str) -> String {
    let is_about_the_machine = ["node info", "node md info", "node stat"]
        .iter()
        .any(|report| line.starts_with(report));
    let lines = text.lines().map(|line| {
        if line.starts_with("Cluster created at ") {
            "Cluster created at TIME".to_owned()
        } else if is_about_the_machine {
            let words = line.split_whitespace().map(|word| {
                let is_number = word.starts_with(|first: char| first.is_ascii_digit());
                let is_fact = is_number || word.starts_with('/') || word.ends_with('B');
                if is_fact { "#" } else { word }
            });
            words.collect::<Vec<_>>().join(" ")
        } else {
            without_times(line)
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Replaces `2026-11-25`, `21:26`, `21:26:56` and seconds since 1970.
fn without_times(line: &str) -> String {
    const SHAPES: [&str; 4] = ["9999-99-99", "99:99", "99:99:99", "9999999999"];
    let mut masked = String::new();
    let mut rest = line;
    while !rest.is_empty() {
        let is_part = |c: char| c.is_ascii_digit() || c == ':' || c == '-';
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let (run, behind) = rest.split_at(end.max(rest.chars().next().map_or(0, char::len_utf8)));
        let shape: String = run
            .chars()
            .map(|c| if c.is_ascii_digit() { '9' } else { c })
            .collect();
        masked.push_str(if SHAPES.contains(&shape.as_str()) {
            "TIME"
        } else {
            run
        });
        rest = behind;
    }
    masked
}

/// Both servers, and their different results.
struct Comparison<'a> {
    dog: &'a Path,
    real: Subject<'a>,
    embedded: Subject<'a>,
    equal: usize,
    disagreements: Vec<String>,
}

impl Comparison<'_> {
    fn run(&mut self, lines: &str) -> anyhow::Result<()> {
        for line in lines.lines().filter(|line| !line.is_empty()) {
            let real = self.real.run(self.dog, line)?;
            let embedded = self.embedded.run(self.dog, line)?;
            if real == embedded {
                println!("equal, exit {:?}: dog {line}", real.exit);
                self.equal += 1;
            } else {
                self.disagreements.push(format!(
                    "dog {line}\n{}\n{}",
                    shown("sheep", &real),
                    shown("sheep-embedded", &embedded)
                ));
            }
        }
        Ok(())
    }

    fn expect_differences(&self, commands: &[Different]) -> anyhow::Result<()> {
        for &(line, why) in commands {
            let real = self.real.run(self.dog, line)?;
            let embedded = self.embedded.run(self.dog, line)?;
            println!("different: dog {line}: {why}");
            ensure!(real != embedded, "`dog {line}` does not differ any more");
        }
        Ok(())
    }
}

fn shown(server: &str, seen: &Seen) -> String {
    format!(
        "--- {server}: exit {:?}\n{}\n{}",
        seen.exit, seen.out, seen.err
    )
}

fn programs() -> anyhow::Result<RealSheep> {
    let path = |variable| env::var_os(variable).map(PathBuf::from);
    let (sheep, dog) = (path(SHEEP_BINARY_VARIABLE), path(DOG_VARIABLE));
    RealSheep::find(sheep.as_deref(), dog.as_deref())?
        .with_context(|| format!("this test needs `sheep` on PATH or in {SHEEP_BINARY_VARIABLE}"))
}

#[test]
fn dog_output_is_equal_on_embedded_sheep() -> anyhow::Result<()> {
    // A real and an embedded server, both unformatted.
    let programs = programs()?;
    let directory = TempDir::with_prefix("sheepfs-test-dog-")?;
    let below = |name: &str| -> anyhow::Result<PathBuf> {
        let path = directory.path().join(name);
        fs::create_dir(&path)?;
        Ok(path)
    };
    let (real_directory, embedded_directory) = (below("real")?, below("embedded")?);
    let cluster = RealCluster::start_unformatted(programs.clone(), &below("cluster")?, 1)?;
    let sheep = EmbeddedSheep::start_unformatted(&below("sheep")?)?;
    let (real, embedded) = (cluster.address(0), sheep.address());
    let mut comparison = Comparison {
        dog: &programs.dog,
        real: Subject {
            address: &real,
            directory: &real_directory,
        },
        embedded: Subject {
            address: &embedded,
            directory: &embedded_directory,
        },
        equal: 0,
        disagreements: Vec::new(),
    };

    // The commands run on both, in this order, as each list depends on the ones before.
    comparison.run(UNFORMATTED)?;
    comparison.expect_differences(&DIFFERENT_FORMAT)?;
    comparison.run(FORMATS)?;
    // Dog takes no locks itself.
    let holders = [&real, &embedded]
        .into_iter()
        .map(|address| {
            let mounted = Mounted::start_with(&["--address", address, "--lock", "require"])?;
            mounted.attach("locked")?;
            Ok(mounted)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    comparison.run(LOCKED)?;
    drop(holders);
    for lines in [NODE, VDIS, FAMILIES, ATTRIBUTES, BACKUPS, DELETIONS] {
        comparison.run(lines)?;
    }

    // All disagreements are reported together.
    println!("{} commands are equal", comparison.equal);
    let disagreements = comparison.disagreements.join("\n\n");
    ensure!(disagreements.is_empty(), "{disagreements}");
    comparison.expect_differences(&DIFFERENT)
}
